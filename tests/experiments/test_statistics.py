"""The statistics: known examples, invariances, error rates by simulation, and the fixture of a false find."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.statistics import (
    ALPHA,
    PUBLISHED,
    Prior,
    alike,
    calibration,
    contrast,
    exceeds,
    holm,
    minimum_detectable_effect,
    moderated,
    paired,
    pooled_variance,
    resolution,
    runs_needed,
    welch,
)

CORE, BPB = PUBLISHED["core"], PUBLISHED["val_bpb"]
VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=8).filter(lambda v: statistics.pstdev(v) > 1e-3)


def test_the_two_by_two_of_warmdown_and_clip_is_not_resolvable() -> None:
    """karpathy/nanochat 889e588: one run a cell; the winner fell back when it was run again."""
    neither, warmdown, clip, both = ([0.2610], [0.2489], [0.2569], [0.2646])
    found = contrast((1, -1, -1, 1), (neither, warmdown, clip, both), CORE)
    assert found is not None
    assert found.estimate == pytest.approx(0.0198)
    assert found.estimate / found.standard_error == pytest.approx(1.58, abs=0.01)
    assert found.p_two_sided == pytest.approx(0.11, abs=0.03)
    assert not found.is_resolved
    assert found.low < 0.0 < found.high
    needed = runs_needed(0.01, CORE.sigma, num_arms=4)
    assert needed in (20, 21)
    assert resolution(found, 0.01) == f"not resolvable with n = 1; n = {needed} would resolve 0.01"


def test_a_single_change_of_that_fixture_is_not_either() -> None:
    found = contrast((-1, 1), ([0.2610], [0.2489]), CORE)
    assert found is not None
    assert not found.is_resolved
    assert contrast((-1, 1), ([0.2610], [0.2489])) is None  # nothing tells the spread of single runs


@pytest.mark.parametrize(
    ("sigma", "n", "effect"),
    [
        (0.0057, 3, 0.0168),
        (0.0057, 5, 0.0130),
        (0.0057, 20, 0.0065),
        (2.3e-4, 3, 6.8e-4),
        (2.3e-4, 10, 3.7e-4),
    ],
)
def test_published_detectable_effects(sigma: float, n: int, effect: float) -> None:
    assert minimum_detectable_effect(sigma, (n, n)) == pytest.approx(effect, rel=0.01)


def test_moderation_turns_two_degrees_into_twenty_one() -> None:
    variance, dof = moderated(4.0e-8, 2.0, BPB)
    assert dof == 21.0
    assert variance == pytest.approx((19 * 2.3e-4**2 + 2 * 4.0e-8) / 21)
    assert moderated(1.0, 2.0, None) == (1.0, 2.0)


def test_welch_by_hand() -> None:
    """Means 2 and 5, variances 1 and 4 over three runs: t = 3 / sqrt(5/3) at 25/17 x 2 degrees."""
    found = welch([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert found is not None
    assert found.estimate == 3.0
    assert found.standard_error == pytest.approx(math.sqrt(5 / 3))
    assert found.dof == pytest.approx(50 / 17)
    assert welch([1.0], [2.0, 3.0]) is None


@given(VALUES, VALUES)
def test_swapping_the_arms_turns_the_sign(a: list[float], b: list[float]) -> None:
    there, back = welch(a, b), welch(b, a)
    assert there is not None
    assert back is not None
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-12)
    assert there.p_below == pytest.approx(back.p_above, abs=1e-12)
    assert there.low == pytest.approx(-back.high, abs=1e-9)


@given(VALUES, st.floats(-5, 5))
def test_equal_pairs_shifted_are_resolved_and_unshifted_are_not(a: list[float], shift: float) -> None:
    same = paired(a, list(a), Prior(0.1, 19.0, "test"))
    assert same is not None
    assert not same.is_resolved
    assert same.p_two_sided == pytest.approx(1.0)
    moved = paired(a, [value + shift for value in a], Prior(0.1, 19.0, "test"))
    assert moved is not None
    assert moved.estimate == pytest.approx(shift, abs=1e-9)


@given(VALUES, VALUES)
def test_the_interval_agrees_with_the_test(a: list[float], b: list[float]) -> None:
    found = contrast((-1, 1), (a, b))
    assert found is not None
    assert (found.p_two_sided < 0.05) == (found.low > 0.0 or found.high < 0.0)


def test_the_false_alarms_and_the_power_are_as_declared() -> None:
    """20,000 pairs of arms: by the planner's n a real effect is seen in 90 % of cases, and none in 1 %."""
    random = np.random.default_rng(7)
    n = runs_needed(0.01, 0.008) or 0
    z = 2.3263  # the known-sigma test at 1 %
    scale = 0.008 * math.sqrt(2 / n)
    null = random.normal(0.0, 0.008, (2, 20_000, n)).mean(axis=2)
    assert np.mean((null[1] - null[0]) / scale > z) == pytest.approx(ALPHA, abs=3 * math.sqrt(ALPHA / 20_000))
    assert np.mean((null[1] - null[0] + 0.01) / scale > z) == pytest.approx(0.9, abs=0.02)


def test_the_moderated_test_keeps_its_level() -> None:
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(600):
        runs = random.normal(0.0, 0.01, 26)
        prior = calibration([list(runs[:20])], "simulated")
        found = contrast((-1, 1), (list(runs[20:23]), list(runs[23:])), prior)
        assert found is not None
        alarms += found.p_below < ALPHA
    assert alarms / 600 <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 600)


@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), st.sampled_from([math.inf, 19.0, 4.0]))
def test_the_runs_needed_are_the_fewest_that_do(effect: float, sigma: float, prior_dof: float) -> None:
    n = runs_needed(effect, sigma, prior_dof=prior_dof)
    if n is None:
        assert minimum_detectable_effect(sigma, (10_000, 10_000)) > effect * 0.99
        return

    def seen(count: int) -> float:
        dof = prior_dof + 2 * (count - 1)
        return minimum_detectable_effect(sigma, (count, count), dof=dof)

    assert seen(n) <= effect * (1 + 1e-6)
    assert n == 1 or seen(n - 1) > effect * (1 - 1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p for p, a in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(len(p_values) * min(p_values), 1.0))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(a for _, a in pairs)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_a_calibration_needs_a_spread() -> None:
    assert calibration([[1.0], [2.0]], "x") is None
    assert calibration([[1.0, 1.0]], "x") is None
    prior = calibration([[1.0, 3.0], [5.0, 5.0, 8.0]], "x")
    assert prior is not None
    assert (prior.dof, prior.sigma**2) == pytest.approx((3.0, (2.0 + 6.0) / 3))
    assert pooled_variance([]) == (0.0, 0.0)


def test_a_calibration_leaves_out_what_scatters_more_than_the_rest() -> None:
    calm = [[2.00, 2.01, 1.99], [2.10, 2.11, 2.09], [1.90, 1.91, 1.89]]
    wild = [[2.157, 2.208, 2.472], [2.19, 2.38, 2.60]]
    assert alike([*wild, *calm, [5.0]]) == sorted(calm, key=statistics.variance)
    prior = calibration([wild[0], *calm, wild[1]], "x")
    assert prior is not None
    assert prior == calibration(calm, "x")
    assert exceeds(*pooled_variance(wild[:1]), prior)
    assert not exceeds(*pooled_variance(calm[:1]), prior)
    assert alike(wild) == sorted(wild, key=statistics.variance)  # of two alike, neither is the wild one


def test_of_arms_that_share_their_spread_few_are_left_out() -> None:
    generator = np.random.default_rng(3)
    draws = generator.normal(size=(2000, 8, 3))
    left_out = sum(len(alike([list(arm) for arm in arms])) < 8 for arms in draws.tolist())
    assert left_out / 2000 < 0.03


@given(st.lists(st.lists(st.floats(0.0, 10.0), max_size=5), max_size=6))
def test_what_is_left_out_is_wider_than_all_that_is_kept(arms: list[list[float]]) -> None:
    kept = alike(arms)
    several = [arm for arm in arms if len(arm) > 1]
    assert len(kept) >= min(len(several), 1)
    widest = max(map(statistics.variance, kept), default=0.0)
    assert all(statistics.variance(arm) >= widest for arm in several if arm not in kept)
