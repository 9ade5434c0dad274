"""alpha_D, its gate, and the paper's own values, which the gate would turn away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.exponent import PAPER, Exponent, exponent
from bench.experiments.horizon.power_law import fit

X = [1, 2, 4, 8]


def of(beta: float, gamma: float, spread: float = 0.0) -> Exponent | None:
    """alpha_D of exact laws whose draws scatter so."""
    random = np.random.default_rng(8)
    laws = [fit(X, [n**-each for n in X]) for each in (beta, gamma)]
    draws = [each + spread * random.standard_normal(1000) for each in (beta, gamma)]
    return exponent(laws[0], laws[1], draws[0], draws[1])


def test_the_papers_exponents_follow_from_its_decays() -> None:
    for each in PAPER:
        found = of(each.beta, each.gamma)
        assert found is not None
        assert found.value == pytest.approx(each.alpha, abs=1e-3)
        assert not found.is_plausible
        assert any("fails" in sentence for sentence in found.says)
        assert any("TinyStories 0.185" in s and "WikiText 0.141" in s for s in found.says)
        assert any("in doubt" in sentence for sentence in found.says)


@given(st.floats(0.1, 2.0), st.floats(0.05, 2.0))
def test_the_gate_is_the_plans(beta: float, gamma: float) -> None:
    found = of(beta, gamma)
    assert found is not None
    assert found.value == pytest.approx(gamma / (2 * beta))
    assert found.is_plausible == (0.2 <= found.value <= 0.8)


@pytest.mark.parametrize(
    ("gamma", "is_plausible"), [(0.39, False), (0.41, True), (1.59, True), (1.61, False)]
)
def test_both_ends_of_the_gate(gamma: float, is_plausible: bool) -> None:
    found = of(1.0, gamma)
    assert found is not None
    assert found.is_plausible == is_plausible


def test_a_value_far_below_the_papers_does_not_put_the_gate_in_doubt() -> None:
    found = of(1.0, 0.05)
    assert found is not None
    assert not any("in doubt" in sentence for sentence in found.says)


def test_the_interval_is_that_of_the_draws() -> None:
    found = of(0.9, 0.4, 0.02)
    assert found is not None
    assert found.interval is not None
    low, high = found.interval
    assert low < found.value < high
    assert high - low == pytest.approx(4 * 0.02 * found.value * np.hypot(1 / 0.9, 1 / 0.4), rel=0.15)


@pytest.mark.parametrize(("beta", "gamma"), [(-0.5, 0.3), (0.5, -0.3), (0.0, 0.3)])
def test_what_does_not_fall_has_no_exponent(beta: float, gamma: float) -> None:
    assert of(beta, gamma) is None
