"""Segments that a replay may draw: inside the run, apart from each other, a small share of it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.training.segments import NUM_SEGMENTS, segments


@given(st.integers(1, 100_000))
def test_segments_lie_in_the_run_and_apart(iterations: int) -> None:
    found = segments(iterations)
    assert found[0].start == 0
    assert all(0 <= segment.start < segment.stop <= iterations for segment in found)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(found))
    assert len(found) == min(NUM_SEGMENTS, iterations)


@given(st.integers(240, 100_000))
def test_replaying_all_of_them_costs_two_to_five_percent(iterations: int) -> None:
    steps = sum(segment.stop - segment.start for segment in segments(iterations))
    assert 0.02 <= steps / iterations <= 0.05
