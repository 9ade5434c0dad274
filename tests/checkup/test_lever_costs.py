"""A lever's cost: the median's interval, the verdict against a limit, the table."""

from __future__ import annotations

import random

import pytest

from bench.checkup.lever_costs import LIMITS, cost_of, levers_table, median_interval


@pytest.mark.parametrize(("count", "rank"), [(6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (36, 11), (100, 39)])
def test_the_interval_is_that_of_the_sign_test(count: int, rank: int) -> None:
    """Ranks of a 95 % interval of a median as tables of the sign test have them (k from 0)."""
    values = [float(value) for value in range(count)]
    random.Random(0).shuffle(values)
    assert median_interval(values) == (float(rank), float(count - 1 - rank))


@pytest.mark.parametrize("count", range(6))
def test_few_values_have_no_interval(count: int) -> None:
    assert median_interval([1.0] * count) is None


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator, covered = random.Random(1), 0
    for _ in range(2000):
        interval = median_interval([generator.expovariate(1.0) for _ in range(12)])
        assert interval is not None
        covered += interval[0] <= 0.6931 <= interval[1]
    assert 0.94 < covered / 2000 < 0.995


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ([1.0] * 8, "within"),
        ([1.2] * 8, "over"),
        ([0.9] * 4 + [1.2] * 4, "unresolved"),
        ([1.0] * 3, "unresolved"),
    ],
)
def test_the_verdict_is_the_intervals(times: list[float], verdict: str) -> None:
    assert cost_of("bigram", "d4", times, [1.0] * len(times)).verdict == verdict
    assert cost_of("tied", "d4", times, [1.0] * len(times)).verdict == ""


def test_the_limits_are_those_that_were_set() -> None:
    assert sorted(LIMITS.values()) == [1.01, 1.02, 1.02, 1.03, 1.05]


def test_the_table_has_the_dearest_first() -> None:
    cheap = cost_of("z-loss", "d4", [1.0] * 8, [1.0] * 8, 2**30, 2**30)
    dear = cost_of("tied", "d4", [1.2] * 8, [1.0] * 8, 2**30 + 2**20, 2**30)
    part = cost_of("equilibration, Muon+, NorMuon, decay", "the bare Muon step", [1.1], [1.0])
    lines = levers_table([cheap, part, dear]).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["tied", "equilibration,", "z-loss"]
    assert lines[0].split()[-1] == "+1"
    assert "too few" in lines[1]
    assert "1.01  within" in lines[2]
    assert "1.200-1.200" in lines[0]
