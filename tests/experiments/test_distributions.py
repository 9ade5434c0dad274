"""The distributions against tables, closed forms and each other."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.distributions import f_tail, incomplete_beta, normal_cdf, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("p", "dof", "t"),  # Student's table, as printed in any textbook
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.99, 2, 6.965), (0.99, 21, 2.518), (0.95, 10, 1.812)],
)
def test_the_printed_table(p: float, dof: float, t: float) -> None:
    assert t_quantile(p, dof) == pytest.approx(t, abs=5e-4)


@given(st.floats(-50, 50))
def test_one_and_two_degrees_have_closed_forms(t: float) -> None:
    assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


@given(st.floats(1e-4, 1 - 1e-4), st.floats(1.0, 1e7))
def test_the_quantile_undoes_the_distribution(p: float, dof: float) -> None:
    assert t_cdf(t_quantile(p, dof), dof) == pytest.approx(p, abs=1e-9)


@given(st.floats(0.2, 50), st.floats(0.2, 50), st.floats(0, 1))
def test_the_incomplete_beta_has_its_mirror(a: float, b: float, x: float) -> None:
    rest = 1 - x
    x = 1 - rest  # so that neither is rounded: x^a is 5e-9 where x is 1e-38 and a is 0.2
    assert incomplete_beta(a, b, x) + incomplete_beta(b, a, rest) == pytest.approx(1.0, abs=1e-9)


def test_many_degrees_are_the_normal() -> None:
    assert t_cdf(-2.0, 1e9) == pytest.approx(NormalDist().cdf(-2.0))
    assert t_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)
    assert normal_cdf(-30.0) > 0.0
    assert (t_cdf(math.inf, 3), t_cdf(-math.inf, 3)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("f", "dof", "other"),  # Fisher's table at 1 %, as printed in any textbook
    [(8.02, 2, 9), (98.50, 1, 2), (6.99, 3, 9), (4.85, 10, 10), (99.00, 2, 2)],
)
def test_fishers_table(f: float, dof: float, other: float) -> None:
    assert f_tail(f, dof, other) == pytest.approx(0.01, rel=2e-3)


@given(st.floats(0.01, 30), st.floats(1, 50))
def test_a_squared_t_is_an_f(t: float, dof: float) -> None:
    assert f_tail(t * t, 1.0, dof) == pytest.approx(2.0 * t_cdf(-t, dof), rel=1e-6, abs=1e-12)
    assert f_tail(0.0, 3.0, dof) == 1.0
    assert f_tail(math.inf, 3.0, dof) == 0.0
