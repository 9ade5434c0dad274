"""A row's state: what beside its records is known of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.board.listing import listing
from bench.board.page import page
from bench.board.rows import is_ranked, rows_of
from bench.board.standings import standings
from bench.board.states import NOTHING_KNOWN, Dispute, Known, load_disputes, state_of
from bench.errors import RecipeError, VerificationFailed
from bench.records.replayed import Replay, load_replays, record_sha256
from tests.board.test_rows import TRACK, runs
from tests.records.sample import changed, sample

A, B = "a" * 64, "b" * 64
DISPUTE = f'record = "{A}"\nopened = "2026-03-01"\nby = "somebody"\nsays = "no"\nstate = "open"\n'


def replayed(record: str, passed: bool) -> Replay:
    return Replay(
        record=record,
        passed=passed,
        replayed="2026-03-02",
        by="ci",
        says="segment 3 to 4",
        nonce="n",
        segments=[],
    )


def disputed(record: str, state: str) -> Dispute:
    made = Dispute(record=record, opened="2026-03-01", by="me", says="no", state="open")
    return msgspec.structs.replace(made, state=state)


@pytest.mark.parametrize(
    ("is_complete", "is_current", "known", "state"),
    [
        (True, True, NOTHING_KNOWN, "verified"),
        (False, True, NOTHING_KNOWN, "provisional"),
        (True, False, NOTHING_KNOWN, "retired"),
        (True, True, Known(replays={A: replayed(A, True)}), "replayed"),
        (False, True, Known(replays={A: replayed(A, True)}), "provisional"),
        (True, True, Known(replays={A: replayed(A, False)}), "disputed"),
        (True, True, Known(replays={B: replayed(B, False)}), "verified"),
        (True, True, Known(disputes=(disputed(A, "open"),)), "disputed"),
        (False, True, Known(disputes=(disputed(A, "open"),)), "disputed"),
        (True, True, Known(disputes=(disputed(A, "settled"),)), "verified"),
        (True, True, Known(disputes=(disputed(B, "open"),)), "verified"),
        (True, False, Known(disputes=(disputed(A, "open"),)), "retired"),
    ],
)
def test_the_state_follows(is_complete: bool, is_current: bool, known: Known, state: str) -> None:
    assert state_of([A], is_complete, is_current, known) == state


def test_rows_know_their_records() -> None:
    records = runs(2.5, 2.4, 2.6)
    known = Known(disputes=(disputed(record_sha256(records[1]), "open"),))
    [row] = rows_of(TRACK, records, known)
    assert row.state == "disputed"
    assert is_ranked(row)
    sections = standings([TRACK], records, known)
    for shown in (listing(sections), page(sections)):
        assert "disputed on 2026-03-01 by me (open): no" in shown
    [row] = rows_of(TRACK, [changed(one, "identity.track_sha256", B) for one in records])
    assert row.state == "retired"
    assert not is_ranked(row)


def test_a_record_is_named_by_the_hash_that_names_its_file() -> None:
    from bench.records.schema import file_stem

    record = sample()[0]
    assert file_stem(record).endswith(f"-{record_sha256(record)[:8]}")


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(DISPUTE)
    [dispute] = load_disputes(tmp_path)
    assert (dispute.record, dispute.state, dispute.evidence) == (A, "open", ())
    (tmp_path / f"{A}.json").write_bytes(msgspec.json.encode(replayed(A, True)))
    assert load_replays(tmp_path) == {A: replayed(A, True)}
    assert load_replays(tmp_path / "absent") == {}
    assert load_disputes(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"open"', '"shut"', "state = 'shut'"),
        (A, "a" * 8, "record = "),
        ("by =", "buy =", "buy: no such field"),
        ("2026-03-01", "March", "opened = 'March'"),
        ("says = ", "says == ", "not TOML"),
    ],
)
def test_a_file_that_is_no_dispute_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "one.toml").write_text(DISPUTE.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_disputes(tmp_path)
    assert told in "\n".join(caught.value.lines())


@pytest.mark.parametrize("content", [b"", b"{}", b'{"passed": true}', msgspec.json.encode(replayed(B, True))])
def test_a_file_that_is_no_replay_of_its_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{A}.json").write_bytes(content)
    with pytest.raises(VerificationFailed):
        load_replays(tmp_path)
