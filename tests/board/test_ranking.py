"""Ranks: equal rows tie, the order of rows says nothing, and chance separates few."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board.ranking import (
    Sample,
    chance_less,
    difference,
    estimate,
    has_own_spread,
    holm,
    log_estimate,
    minimum_detectable,
    ranks_of,
    sample_of,
)
from bench.experiments.distributions import t_quantile
from bench.experiments.statistics import Prior

VALUES = st.lists(st.floats(0.1, 10), min_size=2, max_size=6)
PRIORS = st.none() | st.builds(Prior, sigma=st.floats(1e-4, 1.0), dof=st.integers(4, 30))


def places(rows: list[list[float]], prior: Prior | None = None, sign: float = 1.0) -> list[tuple[int, int]]:
    return [tuple(rank) for rank in ranks_of([[sample_of(row) for row in rows]], [prior], [sign])[0]]


@given(values=st.lists(st.floats(0.1, 10), min_size=2, max_size=30))
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    t = t_quantile(0.975, len(values) - 1)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.half_width == pytest.approx(t * statistics.stdev(values) / math.sqrt(len(values)), abs=1e-12)
    assert found.num_seeds == len(values)


def test_a_calibration_moderates_the_variance() -> None:
    prior, values = Prior(sigma=0.1, dof=9), [1.0, 1.2, 1.4]  # s = 0.2
    s = math.sqrt((9 * 0.01 + 2 * 0.04) / 11)
    assert estimate(values, prior).half_width == pytest.approx(t_quantile(0.975, 11) * s / math.sqrt(3))
    assert estimate([1.0], prior).half_width == pytest.approx(t_quantile(0.975, 9) * 0.1)
    assert estimate(values, prior, True).half_width == pytest.approx(
        t_quantile(0.975, 9) * 0.1 / math.sqrt(3)
    )
    # Without a calibration there is none to be part of.
    assert estimate(values, None, True) == estimate(values)


def test_a_spread_that_no_calibration_allows_is_the_rows_own() -> None:
    prior, wild, calm = Prior(sigma=0.01, dof=9), [2.157, 2.208, 2.472], [1.99, 2.0, 2.01]
    assert has_own_spread(sample_of(wild), prior)
    assert not has_own_spread(sample_of(calm), prior)
    assert not has_own_spread(sample_of([5.0]), prior)
    assert not has_own_spread(sample_of(wild), None)
    assert estimate(wild, prior) == estimate(wild)
    t, degrees = difference(sample_of(wild), sample_of(calm), prior)
    calm_variance = (9 * 1e-4 + 2 * 1e-4) / 11
    error = statistics.variance(wild) / 3 + calm_variance / 3
    assert t == pytest.approx((statistics.fmean(wild) - 2.0) / math.sqrt(error))
    assert degrees == pytest.approx(2.0, abs=0.05)  # nearly all of the doubt is the wild row's
    assert places([wild, calm], prior) == [(1, 2), (1, 2)]


def test_chance_alone_seldom_gives_a_row_its_own_spread() -> None:
    """1 % of rows like the calibration's, which are drawn as well; 4,000 rows, three standard errors."""
    rng, own = random.Random(5), 0
    for _ in range(4000):
        reference = [rng.gauss(0, 1) for _ in range(10)]
        prior = Prior(statistics.stdev(reference), 9)
        own += has_own_spread(sample_of([rng.gauss(0, 1) for _ in range(3)]), prior)
    assert own / 4000 == pytest.approx(0.01, abs=3 * math.sqrt(0.01 * 0.99 / 4000))


def test_three_seeds_separate_by_a_calibration_what_they_cannot_alone() -> None:
    rows = [[1.000, 1.004, 0.996], [1.008, 1.012, 1.004], [1.016, 1.020, 1.012]]
    assert places(rows) == [(1, 2), (1, 3), (2, 3)]
    assert places(rows, Prior(0.003, 30)) == [(1, 1), (2, 2), (3, 3)]


def test_the_interval_of_a_time_is_one_of_its_logarithm() -> None:
    found = log_estimate([10.0, 40.0], Prior(0.1, 9))
    assert found.mean == pytest.approx(20.0)
    assert found.half_width is not None
    assert found.half_width > 0


@given(rows=st.lists(VALUES, min_size=1, max_size=6), prior=PRIORS, order=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_rows_and_the_direction_say_nothing(
    rows: list[list[float]], prior: Prior | None, order: random.Random
) -> None:
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    found = places(rows, prior)
    assert places([rows[i] for i in shuffled], prior) == [found[i] for i in shuffled]
    turned = places([[-value for value in row] for row in rows], prior, -1.0)
    assert turned == found
    assert all(1 <= best <= worst <= len(rows) for best, worst in found)
    best_mean = min(range(len(rows)), key=lambda i: statistics.fmean(rows[i]))
    assert found[best_mean][0] == 1


@given(rows=st.lists(VALUES, min_size=1, max_size=4), prior=PRIORS, copies=st.integers(2, 4))
@settings(max_examples=40)
def test_an_identical_row_is_a_tie(rows: list[list[float]], prior: Prior | None, copies: int) -> None:
    found = places([*rows, *([rows[0]] * copies)], prior)
    same = {found[0], *found[len(rows) :]}
    assert len(same) == 1
    [(best, worst)] = same
    assert worst - best >= copies


def test_equal_seeds_are_told_apart_only_where_they_differ() -> None:
    assert places([[2.5] * 3, [2.5] * 3, [2.6] * 3]) == [(1, 2), (1, 2), (3, 3)]


@pytest.mark.parametrize("rows", [[[1.0], [2.0]], [[1.0], [2.0, 2.0]], [[1.0, 1.1], [5.0]]])
def test_one_seed_decides_nothing(rows: list[list[float]]) -> None:
    assert places(rows) == [(1, 2), (1, 2)]


def test_holm_steps_down() -> None:
    # Holm (1979): compared with 0.05/4, /3, /2, /1 in order, up to the first that fails.
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.03, 0.04]) == [False, False]
    assert holm([0.02, 0.04]) == [True, True]
    assert holm([]) == []


def test_all_tables_are_one_family() -> None:
    pair = [[1.00, 1.01, 0.99], [1.04, 1.05, 1.03]]
    assert places(pair) == [(1, 1), (2, 2)]
    many = [[sample_of(row) for row in pair], [sample_of([5.0, 6.0])] * 40]
    assert [tuple(one) for one in ranks_of(many, [None, None], [1.0, 1.0])[0]] == [(1, 2), (1, 2)]


@pytest.mark.parametrize("prior", [None, Prior(1.0, 9)])
def test_chance_alone_seldom_separates(prior: Prior | None) -> None:
    """With five equal rows at most 5 % of boards separate any two; 400 boards, three standard errors."""
    rng, wrong = random.Random(8), 0
    for _ in range(400):
        rows = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(5)]
        wrong += places(rows, prior) != [(1, 5)] * 5
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_welch_by_hand() -> None:
    # s1^2 = 1 on 2 degrees, s2^2 = 4 on 3: se^2 = 1/3 + 1; df = (4/3)^2 / ((1/3)^2/2 + 1/3)
    a, b = Sample(0.0, 3, 2.0, 2), Sample(2.0, 4, 12.0, 3)
    t, degrees = difference(a, b, None)
    assert t == pytest.approx(-2 / math.sqrt(4 / 3))
    assert degrees == pytest.approx((16 / 9) / (1 / 18 + 1 / 3))
    assert chance_less(a, b, None) > 0.9
    assert chance_less(a, b, None) + chance_less(b, a, None) == pytest.approx(1.0)


def test_the_detectable_difference_is_the_plans() -> None:
    """At 1 % and 90 % power: 3.608 sigma sqrt(2/n), 0.00068 bpb at sigma 2.3e-4 and n = 3."""
    known = minimum_detectable(sample_of([1.0, 1.0, 1.0], True), Prior(2.3e-4, 19))
    assert known == pytest.approx(6.8e-4, abs=1e-5)
    assert minimum_detectable(sample_of([1.0]), None) is None
    own = minimum_detectable(sample_of([1.0, 1.1, 1.2]), None)
    assert own == pytest.approx(3.608 * 0.1 * math.sqrt(2 / 3), rel=1e-3)
