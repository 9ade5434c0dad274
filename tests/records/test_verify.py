"""`bench verify` finds every way in which a record can say what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import VerificationFailed
from bench.records.schema import Record, encode
from bench.records.store import StoredRecord, read
from bench.records.verify import require_valid, verify
from bench.spec.track import NamedTrack
from tests.records.sample import (
    LEDGER,
    LOSSES,
    changed,
    compiled_proof,
    event_log,
    quick_track,
    sample,
    sample_proof,
    stored,
)

OTHER_PROOF = msgspec.structs.replace(sample_proof(), op="adamw", sources_sha256="8" * 64)
# A dotted field, a lie, and what must be said of it.
LIES: list[tuple[str, Any, str]] = [
    ("schema", 2, "schema 2"),
    ("timing.ledger", LEDGER | {"eval": 9.0}, "the ledger sums to"),
    ("timing.ledger", LEDGER | {"eval": -3.0, "other": 6.5}, "negative"),
    ("timing.ledger", {name: s for name, s in LEDGER.items() if name != "proof"}, "categories"),
    ("timing.ledger", LEDGER | {"coffee": 0.0}, "categories"),
    ("timing.wall_s", 29.0, "the ledger sums to"),
    ("timing.official_s", 14.0, "is not train + data_wait"),
    ("timing.cold_s", 20.0, "cold time"),
    ("timing.mfu", 1.01, "MFU 101.0% is impossible"),
    ("timing.mfu", 0.0, "is impossible"),
    ("shape.tokens", 64 * 4096 + 1, "tokens are not 64 steps"),
    ("shape.steps", 65, "losses for 65 steps"),
    ("shape.depth", 5, "depth is 5"),
    ("shape.sequence_length", 512, "sequence_length is 512"),
    ("shape.compute_dtype", "float32", "compute_dtype is float32"),
    ("shape.batch_tokens", 8192, "batch_tokens is 8192"),
    ("data.vocab_size", 8192, "vocab_size is 8192"),
    ("data.dataset", "climbmix", "dataset is climbmix"),
    ("memory.peak_bytes", 0, "peak memory is 0"),
    ("scores.value", 2.4, "not the measured val_bpb"),
    ("scores.metric_id", "bpb-bestfit-v1", "metric bpb-bestfit-v1"),
    ("scores.metric", "core", "the track's is bpb-documents-v1"),
    ("curves.losses", [*LOSSES[:-1], 1.0], "loss curve is not the event log's"),
    ("curves.losses", [*LOSSES[:-1], None], "not finite"),
    ("curves.bpbs", [2.4], "bits per byte are not the event log's"),
    ("proofs", [], "no proof of kernel relu_squared_mlp/keep-output"),
    ("proofs", [msgspec.structs.replace(sample_proof(), device_name="Other CPU")], "made on Other CPU"),
    ("proofs", [sample_proof(), OTHER_PROOF], "proofs are of different sources"),
    ("compiled", compiled_proof(gradients=1.5), "gradients is 1.5 times its bound"),
    ("compiled", msgspec.structs.replace(compiled_proof(), device_name="Other CPU"), "made on Other CPU"),
    ("dispatches", {"relu_squared_mlp/keep-output": 0}, "was chosen and never ran"),
    ("dispatches", {"relu_squared_mlp/triton": 4}, "was chosen and never ran"),
    ("events_sha256_tip", "0" * 64, "not the one the record was made from"),
    ("num_events", 3, "not the one the record was made from"),
    ("identity.seed", 1, "seed 1 is not seed 0"),
    ("identity.seed_index", 1, "is not seed 1"),
    ("identity.seed_index", -1, "is not seed -1"),
    ("identity.seed_index", 10**12, "is not seed 1000000000000"),
    ("identity.rules", 2, "rules v2"),
    ("identity.track_fields", [], "fields set by the track"),
    ("identity.track_sha256", "0" * 64, "another version of track"),
    ("identity.recipe_sha256", "0" * 64, "not the hash of the stored recipe"),
    ("identity.recipe_title", "Faster", "title or track"),
    ("identity.own_track", "gpt2-8xh100", "title or track"),
    ("identity.recipe_resolved", {"model": {"depht": 3}}, "the stored recipe is not one"),
    ("identity.recipe_resolved", {"model": {"depth": 5}}, "not the hash of the stored recipe"),
    ("machine.machine_class", "1xH200", "machine class 1xH200"),
]


@pytest.mark.parametrize(("path", "lie", "told"), LIES, ids=[f"{path}-{told[:20]}" for path, _, told in LIES])
def test_each_lie_is_found(tmp_path: Path, path: str, lie: object, told: str) -> None:
    """The liar writes the record through `write_once`, so its bytes and its name are in order."""
    record, events = sample()
    problems = verify(stored(tmp_path, changed(record, path, lie), events), quick_track())
    assert any(told in problem for problem in problems), problems


def test_nothing_is_found_in_what_was_measured(tmp_path: Path) -> None:
    for seed_index, bpb in ((0, 2.5), (1, None), (7, 2.4)):
        assert verify(stored(tmp_path, *sample(seed_index=seed_index, bpb=bpb)), quick_track()) == []


def test_a_proof_of_compiled_code_holds_where_code_was_compiled(tmp_path: Path) -> None:
    record, events = sample()
    proved = changed(record, "compiled", compiled_proof())
    assert verify(stored(tmp_path / "compiled", proved, events), quick_track()) == []
    later = changed(record, "created", "2026-12-01T12:00:00Z")
    problems = verify(stored(tmp_path / "later", later, events), quick_track())
    assert any("was not held to the references" in problem for problem in problems), problems
    eager = changed(proved, "shape.compiled", False)
    problems = verify(stored(tmp_path / "eager", eager, events), quick_track())
    assert any("in a run that compiled none" in problem for problem in problems), problems


def test_an_edited_field_is_found(tmp_path: Path) -> None:
    one = stored(tmp_path, *sample())
    one.path.write_bytes(encode(changed(one.record, "scores.val_bpb_bestfit", 1.0)))
    assert any("name does not follow" in problem for problem in verify(read(one.path), quick_track()))


def test_other_bytes_of_the_same_content_are_found(tmp_path: Path) -> None:
    one = stored(tmp_path, *sample())
    one.path.write_bytes(one.path.read_bytes().replace(b"  ", b" "))
    assert any("canonical" in problem for problem in verify(read(one.path), quick_track()))


@given(data=st.data())
def test_any_edit_of_the_bytes_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    one = stored(tmp_path_factory.mktemp("records"), *sample())
    content = one.path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    one.path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
    try:
        problems = verify(read(one.path), quick_track())
    except VerificationFailed:
        return
    assert problems


@pytest.mark.parametrize("name", ["1-00000000.json", "record.json"])
def test_a_renamed_file_is_found(tmp_path: Path, name: str) -> None:
    one = stored(tmp_path, *sample())
    path = one.path.rename(one.path.with_name(name))
    one.events_path.rename(path.with_suffix(".events.jsonl"))
    assert [problem[:8] for problem in verify(read(path), quick_track())] == ["the name"]


def test_a_moved_folder_is_found(tmp_path: Path) -> None:
    one = stored(tmp_path, *sample())
    moved = one.path.parent.rename(one.path.parent.with_name("run7"))
    assert verify(read(moved / one.path.name), quick_track()) == [
        "lies in cpu-quick/run7, says cpu-quick/quick"
    ]


def test_a_missing_log_is_found(tmp_path: Path) -> None:
    one = stored(tmp_path, *sample())
    one.events_path.unlink()
    assert any("no event log" in problem for problem in verify(one, quick_track()))


@pytest.mark.parametrize("cut", [0, 1, -1, 200])
def test_a_cut_log_is_found(tmp_path: Path, cut: int) -> None:
    one = stored(tmp_path, *sample())
    one.events_path.write_bytes(one.events_path.read_bytes()[:cut])
    assert verify(one, quick_track())


@pytest.mark.parametrize("steps", [[{"losses": 3}], [{}], [{"losses": [{"a": 1}]}], [{"losses": None}]])
def test_a_forged_log_is_found_whatever_is_in_it(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    """A liar can make a whole chain anew; it must still say what the record says."""
    from bench.records.events import GENESIS, chained

    tip, lines = GENESIS, b""
    for value in steps:
        for key in ("step", "eval_accuracy"):
            event = chained(tip, key, 1.0, value)
            tip, lines = event.hash, lines + msgspec.json.encode(event, order="deterministic") + b"\n"
    record = changed(changed(sample()[0], "events_sha256_tip", tip), "num_events", 2 * len(steps))
    problems = verify(stored(tmp_path, record, lines), quick_track())
    assert "the loss curve is not the event log's" in problems


def test_the_log_of_another_run_is_found(tmp_path: Path) -> None:
    record, _ = sample()
    other, _, _ = event_log(LOSSES, 2.4, record.identity.seed)
    assert verify(stored(tmp_path, record, other), quick_track()) == [
        "the event log is not the one the record was made from"
    ]


def test_a_changed_track_is_found(tmp_path: Path) -> None:
    one, track = stored(tmp_path, *sample()), quick_track()
    edited = NamedTrack(track.name, track.track, "0" * 64)
    assert verify(one, edited) == ["measured under another version of track cpu-quick"]
    assert verify(one, None) == ["no track 'cpu-quick'"]


def test_too_long_a_compilation_is_found(tmp_path: Path) -> None:
    record, events = sample()
    ledger = LEDGER | {"compile": 301.0}
    for path, value in (("ledger", ledger), ("wall_s", sum(ledger.values())), ("cold_s", 317.5)):
        record = changed(record, f"timing.{path}", value)
    assert verify(stored(tmp_path, record, events), quick_track()) == [
        "compiled for 301 s, the track allows 300"
    ]


def test_a_diverged_run_has_no_score(tmp_path: Path) -> None:
    record, events = sample(bpb=None)
    record = changed(record, "scores.value", 2.0)
    assert "a diverged run has a score" in verify(stored(tmp_path, record, events), quick_track())


def test_the_first_problem_is_raised_with_the_number_of_the_others(tmp_path: Path) -> None:
    record, events = sample()
    one = stored(tmp_path, record, events)
    require_valid(one, quick_track())
    bad = StoredRecord(one.path, _worse(record))
    with pytest.raises(VerificationFailed, match=r"more\)") as caught:
        require_valid(bad, quick_track())
    assert str(one.path) in caught.value.message
    assert caught.value.hint


def _worse(record: Record) -> Record:
    return changed(changed(record, "memory.peak_bytes", 0), "timing.mfu", 2.0)
