"""The law through short runs, and each guard on what is inferred from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.calibration import FALLBACK_RATIO, Inference, Point, fit_law, infer, tokens_to
from bench.experiments.horizon.exponent import Exponent
from bench.experiments.time_to_target import HorizonRuns

PARAMS = 1_000_000
TOKENS = (1_000_000, 2_000_000, 4_000_000)


def of_value(value: float, interval: tuple[float, float] | None = None) -> Exponent:
    """An exponent."""
    return Exponent(
        beta=0.5,
        gamma=value,
        value=value,
        interval=interval,
        is_plausible=0.2 <= value <= 0.8,
        says=[f"alpha_D = {value}"],
    )


def runs(alpha: float = 0.3, asymptote: float = 0.5, amplitude: float = 40.0) -> list[HorizonRuns]:
    """Runs on an exact law."""
    scores = [asymptote + amplitude * n**-alpha for n in TOKENS]
    return [HorizonRuns(tokens=n, seconds=(1.0,), scores=(s,)) for n, s in zip(TOKENS, scores, strict=True)]


def inferred(target: float | None, alpha: float = 0.3, **others: float) -> Inference:
    return infer(of_value(alpha, (0.9 * alpha, 1.1 * alpha)), runs(alpha, **others), target, PARAMS)


@given(st.floats(0.1, 0.9), st.floats(0.1, 3.0), st.floats(1.0, 100.0))
def test_the_constants_of_an_exact_law_are_found(alpha: float, asymptote: float, amplitude: float) -> None:
    points = [Point(tokens=n, score=asymptote + amplitude * n**-alpha, num_runs=1) for n in TOKENS]
    law = fit_law(points, alpha)
    assert law.asymptote == pytest.approx(asymptote, rel=1e-6)
    assert law.amplitude == pytest.approx(amplitude, rel=1e-6)
    assert law.r_squared == pytest.approx(1.0)
    assert tokens_to(law, law.at(8e6)) == pytest.approx(8e6, rel=1e-4)


def test_a_target_within_reach_is_inferred_with_one_neighbour() -> None:
    found = inferred(0.5 + 40.0 * 9e6**-0.3)
    assert (found.status, found.decision) == ("ok", "inferred")
    assert found.target_tokens == pytest.approx(9e6)
    assert found.ratio == found.chosen_ratio == pytest.approx(9.0)
    assert found.confirmation_ratio == pytest.approx(9.0 * 1.05)
    assert found.target_tokens_interval is not None
    low, high = found.target_tokens_interval
    assert low is not None
    assert high is not None
    assert low < 9e6 < high


@pytest.mark.parametrize(("tokens", "status"), [(1.04e8, "ok"), (1.06e8, "unreachable")])
def test_ten_times_the_fallback_is_the_limit(tokens: float, status: str) -> None:
    found = inferred(0.5 + 40.0 * tokens**-0.3)
    assert found.status == status
    assert found.limit_tokens == pytest.approx(10 * 10.5 * PARAMS)
    assert found.target_tokens == pytest.approx(tokens, rel=1e-3)


def test_a_target_below_the_asymptote_is_never_met() -> None:
    found = inferred(0.49)
    assert (found.status, found.target_tokens) == ("below asymptote", None)
    assert "ends at 0.5000" in found.why


def test_a_law_that_ends_below_zero_is_told_but_not_chosen() -> None:
    found = inferred(-0.2 + 40.0 * 9e6**-0.3, asymptote=-0.2)
    assert (found.status, found.decision, found.chosen_ratio) == (
        "impossible law",
        "fallback",
        FALLBACK_RATIO,
    )
    assert found.target_tokens == pytest.approx(9e6)
    assert "-0.2" in found.why


@pytest.mark.parametrize("alpha", [0.19, 0.81])
def test_an_implausible_exponent_is_told_but_not_chosen(alpha: float) -> None:
    found = inferred(0.5 + 40.0 * 9e6**-alpha, alpha)
    assert (found.status, found.decision, found.chosen_ratio) == ("implausible exponent", "fallback", 10.5)
    assert found.ratio == pytest.approx(9.0, rel=1e-3)


def test_longer_runs_that_are_worse_calibrate_nothing() -> None:
    assert inferred(0.4, amplitude=-40.0).status == "not improving"
    bent = runs()
    bent[1] = HorizonRuns(tokens=TOKENS[1], seconds=(1.0,), scores=(9.0,))
    assert infer(of_value(0.3), bent, 0.6, PARAMS).status == "not improving"


@pytest.mark.parametrize(
    ("num_runs", "target", "why"), [(1, 0.6, "2 horizons, there are 1"), (3, None, "a target")]
)
def test_what_a_calibration_takes(num_runs: int, target: float | None, why: str) -> None:
    found = infer(of_value(0.3), runs()[:num_runs], target, PARAMS)
    assert (found.status, found.decision) == ("uncalibrated", "fallback")
    assert why in found.why


def test_without_a_recipe_nothing_is_calibrated() -> None:
    assert infer(of_value(0.3), [], None, None).why == "a calibration takes a recipe and a target"


def test_without_an_exponent_the_fallback_is_chosen() -> None:
    found = infer(None, runs(), 0.6, PARAMS)
    assert (found.status, found.chosen_ratio) == ("no exponent", FALLBACK_RATIO)


def test_a_score_that_is_better_higher_is_the_mirror_image() -> None:
    target = 0.5 + 40.0 * 9e6**-0.3
    mirrored = [
        HorizonRuns(tokens=each.tokens, seconds=each.seconds, scores=(-each.scores[0],)) for each in runs()
    ]
    found = infer(of_value(0.3), mirrored, -target, PARAMS, "higher")
    assert found.target_tokens == pytest.approx(9e6)
    assert found.law is not None
    assert found.law.at(9e6) == pytest.approx(-target)


def test_a_target_beyond_all_numbers_is_never_met() -> None:
    law = fit_law([Point(tokens=n, score=s, num_runs=1) for n, s in ((10, 2.0), (20, 1.9))], 0.001)
    assert tokens_to(law, law.asymptote + 1e-300) is None
