"""Sequential tests: error rates by simulation of 1e5 sequences, and the decisions' own logic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.sequential import (
    ALPHA,
    CAP,
    e_boundary,
    e_process,
    log_e_value,
    sprt,
    sprt_bounds,
    sprt_increment,
)

PATHS = 100_000
GAINS = st.lists(st.floats(-4, 4), max_size=14)


def first_true(hits: np.ndarray) -> np.ndarray:
    """Place of each row's first hit, or the row's length."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])


def simulated_sprt(gain: float, effect: float) -> tuple[float, float]:
    """(share accepted, mean number of runs) over many sequences of runs with this true gain, sigma 1."""
    runs = np.random.default_rng(11).normal(gain, 1.0, (PATHS, CAP))
    ratios = np.cumsum(sprt_increment(runs, effect, 1.0), axis=1)  # type: ignore[arg-type]
    reject, accept = sprt_bounds()
    up, down = first_true(ratios >= accept), first_true(ratios <= reject)
    return float(np.mean(up < down)), float(np.mean(np.minimum(np.minimum(up, down) + 1, CAP)))


@pytest.mark.parametrize("effect", [1.0, 1.5, 2.0])
def test_without_a_gain_the_sprt_accepts_at_most_one_in_a_hundred(effect: float) -> None:
    accepted, _ = simulated_sprt(0.0, effect)
    assert accepted <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


@pytest.mark.parametrize(("effect", "gain", "runs"), [(1.0, 2.0, 3.7), (1.5, 3.0, 1.9), (2.0, 4.0, 1.2)])
def test_a_large_gain_needs_few_runs(effect: float, gain: float, runs: float) -> None:
    accepted, mean = simulated_sprt(gain, effect)
    assert accepted > 0.97
    assert mean == pytest.approx(runs, abs=0.25)


def test_the_declared_gain_is_mostly_found() -> None:
    """The cap costs some of the 90 % at an effect of one sigma, little at two."""
    assert simulated_sprt(2.0, 2.0)[0] > 0.88
    assert simulated_sprt(1.5, 1.5)[0] > 0.82


@pytest.mark.parametrize("cap", [CAP, 40])
def test_without_a_gain_the_e_process_accepts_at_most_one_in_a_hundred(cap: int) -> None:
    sums = np.cumsum(np.random.default_rng(5).normal(0.0, 1.0, (PATHS, cap)), axis=1)
    bounds = np.array([e_boundary(n) for n in range(1, cap + 1)])
    assert np.mean((sums >= bounds).any(axis=1)) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


def test_the_e_process_finds_two_sigma_in_three_or_four_runs() -> None:
    sums = np.cumsum(np.random.default_rng(6).normal(2.0, 1.0, (20_000, 40)), axis=1)
    bounds = np.array([e_boundary(n) for n in range(1, 41)])
    assert np.mean(first_true(sums >= bounds) + 1) == pytest.approx(3.5, abs=0.3)


@given(st.floats(-200, 200), st.integers(1, 50), st.floats(0.2, 5))
def test_the_e_value_grows_with_the_sum_and_is_finite(total: float, num_runs: int, tau: float) -> None:
    value = log_e_value(total, num_runs, tau)
    assert math.isfinite(value)
    assert log_e_value(total + 0.5, num_runs, tau) > value


def test_the_mixture_starts_at_one() -> None:
    """Before any run the mixture's weights sum to 1: the mean of E_1 over standard normal runs."""
    x = np.linspace(-9, 9, 4001)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    e_values = np.exp([log_e_value(float(value), 1) for value in x])
    assert float(np.sum(density * e_values) * (x[1] - x[0])) == pytest.approx(1.0, abs=1e-3)


@given(GAINS, GAINS)
def test_what_is_decided_stays_decided(gains: list[float], more: list[float]) -> None:
    for verdict, later in (
        (sprt(gains, effect=1.0, sigma=1.0), sprt(gains + more, effect=1.0, sigma=1.0)),
        (e_process(gains, sigma=1.0), e_process(gains + more, sigma=1.0)),
    ):
        assert verdict.num_runs <= min(len(gains), CAP)
        if verdict.decision != "continue":
            assert later == verdict
        else:
            assert len(gains) < CAP


def test_the_cap_rejects() -> None:
    assert sprt([0.5] * 12, effect=1.0, sigma=1.0) == ("reject", CAP, 0.0, True)
    assert e_process([0.0] * 12, sigma=1.0).is_capped
    assert sprt([3.0, 3.0], effect=1.0, sigma=1.0).decision == "accept"
    assert sprt([-3.0], effect=1.0, sigma=1.0).decision == "reject"
    assert sprt([], effect=1.0, sigma=1.0).decision == "continue"


@given(GAINS)
def test_the_boundary_is_where_the_process_accepts(gains: list[float]) -> None:
    verdict = e_process(gains, sigma=1.0)
    sums = np.cumsum(gains[:CAP])
    crossed = [n for n, total in enumerate(sums, 1) if total >= e_boundary(n) * (1 + 1e-9)]
    if crossed:
        assert verdict.decision == "accept"
        assert verdict.num_runs <= crossed[0]
