"""A record's bytes are canonical, and say all of it."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.records.schema import decode, encode, file_stem
from tests.records.sample import changed, sample

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    losses=st.lists(finite, max_size=20),
    warnings=st.lists(st.text(), max_size=3),
    facts=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(-(2**63), 2**63), finite, st.none())),
    mfu=st.none() | st.floats(0, 1),
)
def test_bytes_and_record_say_the_same(
    losses: list[float], warnings: list[str], facts: dict[str, object], mfu: float | None
) -> None:
    record, _ = sample()
    edits = {"curves.losses": losses, "warnings": warnings, "machine.facts": facts, "timing.mfu": mfu}
    for path, value in edits.items():
        record = changed(record, path, value)
    data = encode(record)
    assert decode(data) == record
    assert encode(decode(data)) == data
    assert data.endswith(b"}\n")


def test_a_loss_that_is_not_finite_survives_as_null() -> None:
    """JSON has no NaN; a record that could be written but not read again would stop every later board."""
    record, _ = sample(bpb=None)
    record = changed(record, "curves.losses", [8.3, math.nan, math.inf])
    record = changed(record, "scores.final_train_loss", math.nan)
    back = decode(encode(record))
    assert list(back.curves.losses) == [8.3, None, None]
    assert back.scores.final_train_loss is None
    assert file_stem(back) == file_stem(record)


@pytest.mark.parametrize(
    "path", ["scores.val_bpb", "identity.seed", "created", "timing.ledger.train", "warnings"]
)
def test_the_name_follows_from_the_content(path: str) -> None:
    record, _ = sample()
    value: object = {"created": "2026-03-02T12:00:00Z", "warnings": ["slow"]}.get(path, 7)
    assert file_stem(changed(record, path, value)) != file_stem(record)
    assert file_stem(record).startswith("0-")


@pytest.mark.parametrize("edit", [{"extra": 1}, {"schema": "one"}, {"status": "fine"}, {"warnings": [3]}])
def test_other_fields_and_types_are_refused(edit: dict[str, object]) -> None:
    data = json.loads(encode(sample()[0])) | edit
    with pytest.raises(msgspec.ValidationError):
        decode(json.dumps(data).encode())
