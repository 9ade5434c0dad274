"""Which series are told apart: the same as by comparing each with each, and fast enough for a whole board."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.distributions import t_quantile
from bench.records.samples import T_975, Sample, alike, sample_of, told_apart
from tests.board.test_rows import runs
from tests.records.sample import changed, quick_track

TRACK = quick_track().track
SAMPLES = st.builds(
    Sample,
    recipe=st.text("abc", min_size=1, max_size=3),
    mean=st.floats(-5, 5),
    squared_error=st.floats(0, 1) | st.just(0.0),
    num_runs=st.integers(1, 12),
)


@given(samples=st.lists(SAMPLES, max_size=12))
def test_nobody_is_overlooked(samples: list[Sample]) -> None:
    expected = [
        [other.recipe for there, other in enumerate(samples) if there != here and not told_apart(one, other)]
        for here, one in enumerate(samples)
    ]
    assert alike(samples) == expected


@given(a=SAMPLES, b=SAMPLES)
def test_it_does_not_matter_who_asks(a: Sample, b: Sample) -> None:
    assert told_apart(a, b) == told_apart(b, a)


def test_hundreds_of_recipes_are_compared_at_once() -> None:
    rng = random.Random(1)
    samples = [Sample(f"r{i}", rng.uniform(2, 3), 3e-5, 3) for i in range(1000)]
    start_s = time.thread_time()
    found = alike(samples)
    assert time.thread_time() - start_s < 1.5  # 0.13 s on one core of a Xeon
    assert 1 < max(map(len, found)) < 300


def test_a_series_without_every_seed_is_no_sample() -> None:
    assert sample_of(runs(2.5, 2.4), TRACK) is None
    assert sample_of(runs(2.5, None, 2.4), TRACK) is None
    found = sample_of(runs(2.5, 2.4, 2.6), TRACK)
    assert found is not None
    assert (found.recipe, found.num_runs) == ("quick", 3)
    assert found.mean == pytest.approx(2.5)
    assert found.squared_error == pytest.approx(0.01 / 3)


def test_figures_beyond_all_bounds_are_told_apart_from_nothing() -> None:
    far = [
        changed(record, "scores.value", value)
        for record, value in zip(runs(1.0, 1.0, 1.0), (-1e308, 0.0, 1e308), strict=True)
    ]
    found = sample_of(far, TRACK)
    assert found is not None
    assert not told_apart(found, found._replace(mean=1.0))


@pytest.mark.parametrize("degrees", range(1, len(T_975) + 1))
def test_the_quantiles_are_students(degrees: int) -> None:
    assert T_975[degrees - 1] == pytest.approx(t_quantile(0.975, degrees), abs=6e-4)
    assert math.isfinite(T_975[degrees - 1])
