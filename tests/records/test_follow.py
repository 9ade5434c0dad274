"""A log that grows is read line by line, whole lines only, and to its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import VerificationFailed
from bench.records.events import EventLog
from bench.records.follow import follow
from tests.records.sample import event_log

LOG = event_log([8.0, 7.9, 7.8], 2.5, seed=1)[0]
KEYS = ["run_start", "step", "step", "step", "eval_accuracy", "run_stop"]


def growing(path: Path, pieces: Iterator[bytes]) -> Callable[[float], bool]:
    """A clock that adds a piece of the log at every tick, and is over after the last."""

    def tick(seconds: float) -> bool:
        piece = next(pieces, None)
        if piece is not None:
            with path.open("ab") as file:
                file.write(piece)
        return piece is None

    return tick


@given(cuts=st.lists(st.integers(0, len(LOG)), max_size=8))
def test_wherever_it_was_cut_every_event_is_read_once(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    ends = [0, *sorted(cuts), len(LOG)]
    pieces = (LOG[start:end] for start, end in pairwise(ends))
    assert [event.key for event in follow(path, growing(path, pieces))] == KEYS


def test_what_an_earlier_run_left_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(LOG)
    since_ns = 10**18
    os.utime(path, ns=(since_ns - 1, since_ns - 1))
    seen = []

    def tick(seconds: float) -> bool:
        if not seen:
            seen.append("stale")
            return False
        log = EventLog(path)
        log.append("run_start", 0.0, recipe="new")
        log.close()
        return True

    assert [event.value for event in follow(path, tick, since_ns)] == [{"recipe": "new"}]


def test_a_log_that_never_comes_ends_with_its_run(tmp_path: Path) -> None:
    assert list(follow(tmp_path / "events.jsonl", lambda seconds: True)) == []


def test_what_is_no_event_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"{}\n")
    with pytest.raises(VerificationFailed, match="not an event"):
        list(follow(path, lambda seconds: True))
