"""Student's t against closed forms and printed tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.board.student import incomplete_beta, quantile, tail


@given(t=st.floats(-50, 50))
def test_one_two_and_infinitely_many_degrees_have_closed_forms(t: float) -> None:
    assert tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-12)
    assert tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-12)
    assert tail(t, math.inf) == pytest.approx(0.5 * math.erfc(t / math.sqrt(2)))
    assert tail(t, 1e7) == pytest.approx(tail(t, math.inf), abs=1e-6)


@given(t=st.floats(-30, 30), degrees=st.floats(1, 300))
def test_it_is_a_symmetric_distribution_that_thins_with_degrees(t: float, degrees: float) -> None:
    assert 0.0 <= tail(t, degrees) <= 1.0
    assert tail(t, degrees) + tail(-t, degrees) == pytest.approx(1.0)
    assert tail(abs(t), degrees + 1) <= tail(abs(t), degrees) + 1e-12


@pytest.mark.parametrize(
    ("upper", "degrees", "printed"),
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
    [(0.025, 1, 12.706), (0.025, 2, 4.303), (0.01, 2, 6.965), (0.01, 21, 2.518), (0.025, 19, 2.093)],
)
def test_quantiles_are_the_printed_ones(upper: float, degrees: int, printed: float) -> None:
    assert quantile(upper, degrees) == pytest.approx(printed, abs=5e-4)
    assert tail(quantile(upper, degrees), degrees) == pytest.approx(upper)


@given(a=st.floats(0.5, 200), x=st.floats(0, 1))
def test_the_beta_function_of_one_side_is_a_power(a: float, x: float) -> None:
    assert incomplete_beta(a, 1.0, x) == pytest.approx(x**a, abs=1e-10)
