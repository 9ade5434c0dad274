"""Both decays from tokens, on a source of known exponents."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import DataError
from bench.experiments.horizon.measure import Losses, Statistics, correlations, measure
from bench.experiments.horizon.power_law import fit
from tests.experiments.horizon.sources import (
    BOS,
    correlated,
    renewal_entropies,
    renewals,
    top_value,
    with_bos,
)

LAGS = (1, 2, 4, 8, 16, 32)


def quiet(line: str) -> None:
    """Hears nothing."""


def measured(losses: Losses | None = None, num: int = 120_000) -> Statistics:
    train, held_out = (with_bos(correlated(num, 0.6, seed), 4000) for seed in (11, 12))
    return measure(
        "folder:x", ("c" * 64, "t" * 64), train, held_out, BOS, 9, 1000, losses=losses, word=str, tell=quiet
    )


@pytest.mark.parametrize("beta", [0.4, 0.8])
def test_beta_of_a_power_law_source_is_recovered(beta: float) -> None:
    tokens = with_bos(correlated(600_000, beta, seed=13), 20_000)
    found, draws = correlations(tokens, BOS, 9, LAGS, str, quiet)
    assert found.law is not None
    assert found.law.interval is not None
    exact = fit(LAGS, [top_value(lag, beta) for lag in LAGS]).exponent
    assert found.law.exponent == pytest.approx(exact, rel=0.08)
    assert found.law.interval[0] <= exact <= found.law.interval[1]
    assert draws.size == 1000
    assert {word for lag in found.lags for word in lag.heaviest} <= set("12345678")
    assert found.law.r_squared > 0.98
    assert [law.window for law in found.windows] == [(1, 8), (2, 16), (4, 32), (8, 32)]


def test_lags_that_chance_may_explain_are_not_fitted() -> None:
    tokens = with_bos(correlated(6_000, 1.5, seed=14), 2000)
    found, draws = correlations(tokens, BOS, 9, LAGS, str, quiet)
    assert found.lags[0].is_above_floor
    assert not found.lags[-1].is_above_floor
    assert found.law is None
    assert draws.size == 0


def test_gamma_from_counts_follows_the_exact_entropies() -> None:
    train, held_out = (with_bos(renewals(400_000, 1.8, seed), 100_000) for seed in (15, 16))
    whole = measure("x", ("", ""), train, held_out, BOS, 3, 1, word=str, tell=quiet)
    found = whole.entropies
    assert found.law is not None
    assert found.law.exponent == pytest.approx(
        fit((1, 2, 3), renewal_entropies(1.8, 3)[1:]).exponent, rel=0.05
    )
    assert found.law_of_plug_in is not None
    assert found.source == "counts"
    assert whole.exponent is not None
    ends = sorted(law.exponent / (2 * whole.exponent.beta) for law in (found.law, found.law_of_plug_in))
    assert whole.exponent.says[-1] == "counts alone place alpha_D between " + " and ".join(
        f"{end:.3f}" for end in ends
    )
    assert any("for want of a checkpoint" in sentence for sentence in found.says)


def test_gamma_from_a_models_losses_is_theirs() -> None:
    random = np.random.default_rng(17)
    curve = np.array([6.0, *(4.0 * n**-0.3 for n in range(1, 64))])
    losses = Losses(curve * (1 + 0.01 * random.standard_normal((32, 1))), 640)
    found = measured(losses)
    assert found.entropies.law is not None
    assert found.entropies.law.exponent == pytest.approx(0.3)
    assert found.entropies.law.window == (1.0, 16.0)
    assert found.exponent is not None
    assert found.exponent.value == pytest.approx(0.3 / (2 * found.exponent.beta))
    assert found.entropies.source == "checkpoint"
    assert any("step 640" in sentence for sentence in found.entropies.says)


@pytest.mark.parametrize(("scale", "is_told"), [(0.1, False), (4.0, True)])
def test_a_model_worse_than_counting_is_told(scale: float, is_told: bool) -> None:
    curve = scale * np.array([6.0, *(4.0 * n**-0.3 for n in range(1, 64))])
    found = measured(Losses(np.tile(curve, (32, 1)), 1), num=20_000).entropies
    assert any("undertrained" in sentence for sentence in found.says) == is_told


def test_an_entropy_rate_is_taken_off_before_the_fit() -> None:
    curve = np.array([6.0, *(2.0 + 4.0 * n**-0.5 for n in range(1, 64))])
    train = with_bos(correlated(20_000, 0.6, 18), 4000)
    losses = Losses(np.tile(curve, (32, 1)), 1)
    found = measure(
        "x", ("", ""), train, train, BOS, 9, 1, losses=losses, entropy_rate=2.0, word=str, tell=quiet
    ).entropies
    assert found.law is not None
    assert found.law.exponent == pytest.approx(0.5)
    plain = measure("x", ("", ""), train, train, BOS, 9, 1, losses=losses, word=str, tell=quiet).entropies
    assert plain.with_fitted_rate is not None
    assert plain.with_fitted_rate[0] == pytest.approx(2.0, abs=0.1)


def test_equal_text_gives_equal_figures() -> None:
    assert measured(num=20_000) == measured(num=20_000)


@pytest.mark.parametrize(
    ("tokens", "lags", "what"),
    [([0, 1, 0, 2], LAGS, "two tokens"), ([0, 1, 2, 1, 2, 1], (1, 2, 64), "64 apart")],
)
def test_a_text_without_pairs_is_an_error(tokens: list[int], lags: tuple[int, ...], what: str) -> None:
    with pytest.raises(DataError, match=what):
        correlations(np.array(tokens, np.uint16), BOS, 4, lags, str, quiet)
