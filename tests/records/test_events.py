"""The event log: nothing in it can be changed, dropped, moved or cut without being found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.errors import DataError, VerificationFailed
from bench.records.events import GENESIS, Event, EventLog, read_events
from tests.records.sample import event_log

LOG, TIP, NUM_EVENTS = event_log([3.0, 2.5, 2.25, 2.125], 1.5, 7)
LINES = LOG.splitlines(keepends=True)


def tip_of(data: bytes) -> tuple[str, int]:
    """What a record keeps of a log: the last hash and the number of events."""
    events = list(read_events(data, "log"))
    return (events[-1].hash if events else GENESIS), len(events)


def is_believed(data: bytes) -> bool:
    """Whether a log passes for the one that the record was made from."""
    try:
        return tip_of(data) == (TIP, NUM_EVENTS)
    except VerificationFailed:
        return False


def test_the_log_itself_is_believed() -> None:
    assert is_believed(LOG)
    assert [event.key for event in read_events(LOG, "log")] == [
        "run_start", "step", "step", "step", "step", "eval_accuracy", "run_stop",
    ]  # fmt: skip


@given(place=st.integers(0, len(LOG) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_found(place: int, byte: int) -> None:
    assume(LOG[place] != byte)
    assert not is_believed(LOG[:place] + bytes([byte]) + LOG[place + 1 :])


@given(
    place=st.integers(0, len(LOG)),
    bytes_in=st.binary(min_size=1, max_size=3) | st.just(b" ") | st.just(b"\n"),
)
def test_any_inserted_byte_is_found(place: int, bytes_in: bytes) -> None:
    edited = LOG[:place] + bytes_in + LOG[place:]
    assume(edited != LOG)
    assert not is_believed(edited)


@given(number=st.integers(0, NUM_EVENTS - 1), old=st.sampled_from([b":", b",", b"{"]))
def test_another_spelling_of_a_line_is_refused_by_its_number(number: int, old: bytes) -> None:
    edited = [*LINES]
    edited[number] = edited[number].replace(old, old + b" ", 1)
    with pytest.raises(VerificationFailed, match=rf"^log:{number + 1}: breaks the hash chain"):
        read_events(b"".join(edited), "log")


@given(start=st.integers(0, len(LOG)), length=st.integers(1, 200))
def test_any_missing_piece_is_found(start: int, length: int) -> None:
    assume(start < len(LOG))
    assert not is_believed(LOG[:start] + LOG[start + length :])


@given(order=st.permutations(LINES))
def test_another_order_is_found(order: list[bytes]) -> None:
    assume(order != LINES)
    assert not is_believed(b"".join(order))


@given(data=st.data())
def test_lines_of_another_run_are_found(data: st.DataObject) -> None:
    other = event_log([3.0, 2.5, 2.25, 2.125], 1.4, 7)[0].splitlines(keepends=True)
    source = data.draw(st.lists(st.booleans(), min_size=NUM_EVENTS, max_size=NUM_EVENTS))
    spliced = b"".join(other[i] if is_other else LINES[i] for i, is_other in enumerate(source))
    assume(spliced != LOG)
    assert not is_believed(spliced)


@given(junk=st.binary(max_size=60))
def test_junk_is_refused_and_nothing_else_happens(junk: bytes) -> None:
    if junk:
        with pytest.raises(VerificationFailed, match=r"^log:\d+: ") as caught:
            tip_of(junk)
        assert caught.value.hint
    else:
        assert tip_of(junk) == (GENESIS, 0)


def test_deeply_nested_lines_are_refused() -> None:
    with pytest.raises(VerificationFailed):
        tip_of(b'{"key":"a","time_s":0.0,"value":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},"hash":""}\n')


def write(log: EventLog, steps: range) -> None:
    for step in steps:
        log.append("step", float(step), step=step, losses=[1.0 / (step + 1)])


@given(before=st.integers(0, 5), lost=st.integers(0, 5), torn=st.booleans(), after=st.integers(0, 5))
def test_a_resumed_log_is_the_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, before: int, lost: int, torn: bool, after: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    log = EventLog(folder / "cut.jsonl")
    write(log, range(before))
    log.sync()
    checkpoint = log.num_bytes, log.tip
    write(log, range(90, 90 + lost))
    log.close()
    if torn:
        with (folder / "cut.jsonl").open("ab") as file:
            file.write(b'{"key":"st')
    log = EventLog(folder / "cut.jsonl", checkpoint)
    write(log, range(before, before + after))
    log.close()
    whole = EventLog(folder / "whole.jsonl")
    write(whole, range(before + after))
    whole.close()
    assert (folder / "cut.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert tip_of((folder / "cut.jsonl").read_bytes()) == (whole.tip, before + after)


@pytest.mark.parametrize("damage", ["short", "edited", "other tip"])
def test_a_log_that_does_not_lead_to_the_checkpoint_is_not_continued(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    write(log, range(4))
    log.close()
    num_bytes, tip = path.stat().st_size, log.tip
    content = path.read_bytes()
    if damage == "short":
        path.write_bytes(content[: content.index(b"\n") + 1])
    elif damage == "edited":
        path.write_bytes(content.replace(b"0.5", b"0.4"))
    with pytest.raises(VerificationFailed):
        EventLog(path, (num_bytes, GENESIS if damage == "other tip" else tip))


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"events\.jsonl: ") as caught:
        EventLog(tmp_path / "file" / "events.jsonl")
    assert caught.value.hint


def test_every_line_is_in_the_file_after_append(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(3):
        write(log, range(step, step + 1))
        assert tip_of(log.path.read_bytes()) == (log.tip, step + 1)
        assert log.path.stat().st_size == log.num_bytes
    log.close()


def test_an_event_is_one_line_whatever_it_holds() -> None:
    data, tip, count = event_log([1.0], 0.5, 1)
    assert data.count(b"\n") == count
    assert all(isinstance(event, Event) for event in read_events(data, "log"))
    assert tip_of(data) == (tip, count)
