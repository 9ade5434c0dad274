"""The miniseries gate: its error rate, its arithmetic, and what makes it pass, fail or say nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.depth_gate import (
    DepthDifference,
    DepthGate,
    common_spread,
    depth_difference,
    figures,
    gate_depths,
    gate_text,
    pooled_difference,
    trend_of,
)
from bench.experiments.distributions import chi_squared_tail, normal_cdf
from bench.experiments.statistics import Prior, difference, paired

PARAMETERS = {4: 4_200_000, 6: 12_200_000, 8: 27_300_000}
NULL_DRAWS = 800


def at(depth: int, delta: float, error: float = 0.001, **others: float) -> DepthDifference:
    """A depth's figures, as of three pairs with a well-known spread."""
    sigma = error * math.sqrt(3 / 2)
    test = difference("paired t", delta, error, others.get("dof", 40.0), sigma=sigma, counts=(3, 3))
    parameters = PARAMETERS.get(depth, depth * 10**6)
    return depth_difference(test, depth=depth, parameters=parameters, flops_ratio=1.0, time_ratio=1.0)


def gated(deltas: Sequence[float], *gaps: str, target: int = 8, error: float = 0.001) -> DepthGate:
    depths = [at(depth, delta, error) for depth, delta in zip(PARAMETERS, deltas, strict=False)]
    return gate_depths(depths, gaps, target, PARAMETERS.get(target, 10**9))


def test_an_equal_gain_at_every_depth_passes() -> None:
    made = gated([-0.01, -0.011, -0.0105])
    assert (made.verdict, made.reasons) == ("pass", ())
    assert made.pooled == pytest.approx(-0.0105)
    assert made.trend is not None
    assert made.trend.predicted < made.trend.upper < 0.0
    assert not made.harms


@pytest.mark.parametrize(
    ("deltas", "said", "harms"),
    [
        ([-0.03, -0.03, 0.003], "harm at d8: +0.00300, 0.00200 is allowed", True),
        ([0.0001, -0.0002, 0.0], "no gain over all depths", False),
        ([0.0018, 0.0019, 0.0018], "no gain over all depths", True),  # none alone, all together
        ([-0.02, -0.01, -0.0005], "at d8 up to +0.0", False),  # the gain shrinks to nothing
    ],
)
def test_each_objection_stands_alone(deltas: list[float], said: str, harms: bool) -> None:
    made = gated(deltas)
    assert made.verdict == "fail"
    assert any(said in reason for reason in made.reasons)
    assert made.harms == harms


def test_what_is_not_run_is_not_shown() -> None:
    assert gated([-0.01, -0.01]).reasons == ("2 depths, 3 are the least",)
    assert gated([-0.01] * 3, "d8: no finished run of the candidate").verdict == "not shown"
    assert gated([-0.01] * 3, target=22).reasons == ("a claim about d22 needs runs at d16 or deeper",)
    exact = gate_depths([at(d, -0.01, 0.0) for d in PARAMETERS], [], 8, PARAMETERS[8])
    assert exact.reasons == tuple(f"d{d}: every seed differs by the same" for d in PARAMETERS)


def test_the_harm_allowed_is_two_standard_errors() -> None:
    # 2 MDE / 3.6 of an MDE that is 3.608 standard errors.
    assert at(4, 0.0).allowed == pytest.approx(2 * 3.608 / 3.6 * 0.001, rel=1e-3)


@given(st.lists(st.tuples(st.floats(-0.05, 0.05), st.floats(0.0005, 0.01)), min_size=3, max_size=3))
def test_the_trend_meets_numpys_weighted_line(points: list[tuple[float, float]]) -> None:
    import numpy as np

    depths = [at(depth, *point) for depth, point in zip(PARAMETERS, points, strict=True)]
    x = np.log([d.parameters for d in depths])
    y, w = (np.array([getattr(d, name) for d in depths]) for name in ("delta", "standard_error"))
    slope, start = np.polyfit(x, y, 1, w=1 / w)
    found = trend_of(depths, 12, 10**8)
    assert found.slope == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert found.predicted == pytest.approx(start + slope * math.log(10**8), rel=1e-4, abs=1e-8)
    pooled, error, _ = pooled_difference(depths, True)
    assert pooled == pytest.approx(float(np.average(y, weights=w**-2)))
    assert error == pytest.approx(float(np.sum(w**-2) ** -0.5))
    assert pooled_difference(depths, False)[1] > error


@pytest.mark.parametrize(("sigmas", "prior_dof"), [((1, 1, 1), 0.0), ((1, 2, 3), 0.0), ((1, 2, 3), 19.0)])
def test_equal_methods_pass_at_most_one_time_in_a_hundred(
    sigmas: tuple[float, ...], prior_dof: float
) -> None:
    draw = random.Random(0)
    passed = 0
    for _ in range(NULL_DRAWS):
        tests = []
        for sigma in sigmas:
            a, b = ([draw.gauss(0.0, sigma) for _ in range(3)] for _ in range(2))
            test = paired(a, b, Prior(sigma, prior_dof) if prior_dof else None)
            assert test is not None
            tests.append(test)
        tests = tests if prior_dof else common_spread(tests)
        made = [
            depth_difference(test, depth=d, parameters=n, flops_ratio=1.0, time_ratio=None)
            for test, (d, n) in zip(tests, PARAMETERS.items(), strict=True)
        ]
        passed += gate_depths(made, [], 8, PARAMETERS[8], is_common=not prior_dof).verdict == "pass"
    assert passed / NULL_DRAWS <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / NULL_DRAWS)


def test_the_common_spread_is_that_of_all_runs() -> None:
    tests = [paired([0.0, 0.0, 0.0], [x, 2 * x, 3 * x]) for x in (1.0, 2.0)]
    found = common_spread([test for test in tests if test])
    variance = (1.0 + 4.0) / 2  # of the differences
    assert [test.standard_error for test in found] == pytest.approx([math.sqrt(variance / 3)] * 2)
    assert {test.dof for test in found} == {4.0}


@given(st.floats(0.01, 30.0))
def test_the_chi_squared_tail_meets_its_closed_forms(value: float) -> None:
    assert chi_squared_tail(value, 1) == pytest.approx(2 * normal_cdf(-math.sqrt(value)))
    assert chi_squared_tail(value, 2) == pytest.approx(math.exp(-value / 2))
    assert chi_squared_tail(value, 4) == pytest.approx(math.exp(-value / 2) * (1 + value / 2))
    odd = 2 * normal_cdf(-math.sqrt(value)) + math.sqrt(2 * value / math.pi) * math.exp(-value / 2)
    assert chi_squared_tail(value, 3) == pytest.approx(odd)


def test_every_figure_is_told() -> None:
    made = gated([-0.01, -0.011, -0.0105])
    told = figures(made)
    for name in ("d4_delta", "d6_allowed", "d8_p_harm_holm", "pooled", "p_gain", "cochran_q", "trend_upper"):
        assert isinstance(told[name], float)
    text = gate_text(made)
    assert all(f"\n  d{depth} " in text for depth in PARAMETERS)
    assert "Cochran's Q" in text
    assert text.endswith("miniseries: pass")
    assert "2 depths, 3 are the least" in gate_text(gated([0.0, 0.0]))
