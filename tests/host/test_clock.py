"""The ledger: exclusive categories that sum to the process's wall-clock."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.host.clock import CATEGORIES, Ledger, process_age_s

REPOSITORY = Path(__file__).parents[2]

Event = tuple[float, str, list["Event"]]  # seconds before, category, what happens inside


class FakeClock:
    """A clock that moves only when told; each synchronisation takes `synchronize_s`."""

    def __init__(self, synchronize_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.num_synchronized = 0
        self._synchronize_s = synchronize_s

    def __call__(self) -> float:
        return self.now_s

    def synchronize(self) -> None:
        self.num_synchronized += 1
        self.now_s += self._synchronize_s


def events() -> st.SearchStrategy[list[Event]]:
    # Eighths of a second add without rounding, so the identities below are exact.
    seconds = st.integers(0, 80).map(lambda eighths: eighths / 8)
    names = st.sampled_from([name for name in CATEGORIES if name != "import"])
    return st.recursive(
        st.just([]), lambda inner: st.lists(st.tuples(seconds, names, inner), max_size=4), max_leaves=20
    )


def play(
    ledger: Ledger, clock: FakeClock, tree: list[Event], inside: str, expected: dict[str, float]
) -> None:
    for seconds, category, inner in tree:
        clock.now_s += seconds
        expected[inside] += seconds
        with ledger.span(category):
            play(ledger, clock, inner, category, expected)
            clock.now_s += seconds
            expected[category] += seconds


@given(tree=events(), import_s=st.integers(0, 80).map(float))
def test_every_second_is_in_the_innermost_span_and_in_no_other(tree: list[Event], import_s: float) -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock, import_s=import_s)
    expected = dict.fromkeys(CATEGORIES, 0.0) | {"import": import_s}
    play(ledger, clock, tree, "other", expected)
    seconds = ledger.close()
    assert seconds.pop("wall_s") == import_s + clock.now_s
    assert seconds == expected


@given(tree=events())
def test_time_spent_waiting_for_the_device_is_charged_too(tree: list[Event]) -> None:
    clock = FakeClock(synchronize_s=0.5)
    ledger = Ledger(clock=clock, synchronize=clock.synchronize)
    play(ledger, clock, tree, "other", dict.fromkeys(CATEGORIES, 0.0))
    seconds = ledger.close()
    assert seconds.pop("wall_s") == sum(seconds.values()) == clock.now_s


def test_work_left_on_the_device_is_charged_to_the_span_that_queued_it() -> None:
    clock = FakeClock()
    queued_s = [0.0]

    def synchronize() -> None:
        clock.now_s += queued_s.pop() if queued_s else 0.0

    ledger = Ledger(clock=clock)
    ledger.synchronize = synchronize  # as the conductor does once the device is open
    with ledger.span("train"):
        queued_s.append(3.0)
    with ledger.span("eval"):
        queued_s.append(5.0)
        with ledger.span("core"):
            queued_s.append(7.0)
    assert [ledger.running_total(name) for name in ("train", "eval", "core", "other")] == [3.0, 5.0, 7.0, 0.0]


def test_the_device_is_waited_for_on_both_sides_of_a_span() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock, synchronize=clock.synchronize)
    with ledger.span("train"):
        assert clock.num_synchronized == 1
    assert clock.num_synchronized == 2


@pytest.mark.parametrize("slow", [name for name in CATEGORIES if name != "import"])
def test_what_passes_in_a_category_is_in_no_other(slow: str) -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock)
    for name in CATEGORIES[1:]:
        with ledger.span(name):
            clock.now_s += 0.03 if name == slow else 0.0
    seconds = ledger.close()
    seconds.pop("wall_s")
    assert seconds.pop(slow) == pytest.approx(0.03)
    assert sum(seconds.values()) == 0.0


def test_an_exception_closes_its_spans() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock)

    def fail_after_a_second() -> None:
        with ledger.span("train"), ledger.span("checkpoint"):
            clock.now_s += 1.0
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail_after_a_second()
    clock.now_s += 2.0
    seconds = ledger.close()
    assert (seconds["checkpoint"], seconds["train"], seconds["other"]) == (1.0, 0.0, 2.0)


def test_a_device_that_fails_loses_no_time() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock)

    def fail() -> None:
        raise RuntimeError("device lost")

    @contextmanager
    def failing_at_the_end() -> Iterator[None]:
        with ledger.span("train"):
            yield
            ledger.synchronize = fail

    with pytest.raises(RuntimeError, match="device lost"), failing_at_the_end():
        clock.now_s += 4.0
    ledger.synchronize = clock.synchronize
    assert ledger.close()["train"] == 4.0


def test_running_totals_include_the_open_span() -> None:
    clock = FakeClock()
    ledger = Ledger(clock=clock, synchronize=clock.synchronize)
    with ledger.span("train"):
        clock.now_s += 2.0
        with ledger.span("data_wait"):
            clock.now_s += 1.0
            num_synchronized = clock.num_synchronized
            assert ledger.running_total("train", "data_wait") == 3.0
            assert ledger.running_total("train") == 2.0
            assert clock.num_synchronized == num_synchronized
    ledger.close()
    clock.now_s += 9.0
    assert ledger.running_total("train", "data_wait", "other") == 3.0


def test_a_whole_process_is_accounted_for_within_half_a_percent() -> None:
    """Wall-clock read outside, by the parent, from before the start until the ledger is closed."""
    program = """
import json, sys, time
time.sleep(0.6)  # stands for slow imports before the ledger
from bench.host.clock import Ledger
ledger = Ledger.start()
with ledger.span("train"):
    time.sleep(0.3)
print(json.dumps(ledger.close() | {"closed_s": time.perf_counter()}))
"""
    begun = time.perf_counter()  # the same system-wide monotonic clock as in the child
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    seconds = json.loads(child.stdout)
    closed_s, wall_s = seconds.pop("closed_s"), seconds.pop("wall_s")
    assert sum(seconds.values()) == pytest.approx(wall_s, rel=1e-9)
    # Besides 0.5 %: one 10 ms tick of the start time, and the parent's fork and exec.
    assert wall_s == pytest.approx(closed_s - begun, rel=0.005, abs=0.04)
    assert seconds["import"] >= 0.6


def test_the_age_of_a_process_grows_with_the_clock() -> None:
    first_s = process_age_s()
    time.sleep(0.05)
    assert process_age_s() - first_s == pytest.approx(0.05, abs=0.03)
