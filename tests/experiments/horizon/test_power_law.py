"""Power laws are found where they are, and intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.power_law import best_floor, block_weights, draws_of, fit, interval_of, windows

LAGS = [1, 2, 4, 8, 16, 32]


@given(st.floats(0.05, 3.0), st.floats(1e-4, 1e3))
def test_an_exact_law_is_found(exponent: float, amplitude: float) -> None:
    law = fit(LAGS, [amplitude * n**-exponent for n in LAGS])
    assert law.exponent == pytest.approx(exponent)
    assert law.amplitude == pytest.approx(amplitude)
    assert law.r_squared == pytest.approx(1.0)
    assert law.standard_error < 1e-6
    assert law.at(10.0) == pytest.approx(amplitude * 10.0**-exponent)
    assert (law.window, law.num_points) == ((1.0, 32.0), 6)


def test_the_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    random, hits = np.random.default_rng(7), 0
    for seed in range(100):
        blocks = np.array([n**-0.9 for n in LAGS]) * (1 + 0.3 * random.standard_normal((32, 6)))
        drawn = block_weights(32, seed) / 32 @ blocks
        low, high = interval_of(draws_of(LAGS, drawn, seed)) or (1.0, 0.0)
        hits += low <= 0.9 <= high
    assert hits >= 90


def test_a_bent_curve_has_a_wide_interval_though_its_text_is_certain() -> None:
    bent = np.tile([1.0, 0.5, 0.4, 0.39, 0.2, 0.01], (1000, 1))
    low, high = interval_of(draws_of(LAGS, bent, 0)) or (0.0, 0.0)
    assert high - low > 0.5


def test_draws_without_an_exponent_give_no_interval() -> None:
    assert interval_of(draws_of(LAGS, np.full((1000, 6), -1.0), 0)) is None


def test_windows_need_three_points() -> None:
    y = [n**-0.5 for n in LAGS]
    found = windows(LAGS, y, ((1, 2), (1, 4), (4, 32), (3, 7)))
    assert [law.window for law in found] == [(1.0, 4.0), (4.0, 32.0)]
    assert windows(LAGS, [0.0] * 6, ((1, 32),)) == ()


@given(st.floats(0.2, 1.5), st.floats(0.2, 0.8))
def test_a_constant_below_a_law_is_seen(exponent: float, floor: float) -> None:
    y = [floor + n**-exponent for n in range(1, 17)]
    found = best_floor(range(1, 17), y)
    assert found is not None
    assert found[0] == pytest.approx(floor, abs=0.02 * min(y))
    assert found[1].exponent > fit(range(1, 17), y).exponent


def test_three_points_tell_no_constant() -> None:
    assert best_floor([1, 2, 3], [3.0, 2.0, 1.5]) is None
