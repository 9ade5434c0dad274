"""Time to target on curves whose answer is known, and the limits on what may be claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.series import all_series
from bench.experiments.statistics import Prior
from bench.experiments.time_to_target import (
    HorizonRuns,
    estimates,
    first_reached,
    horizons_of,
    seconds_at,
    time_to_target,
)
from tests.experiments.runs import changed, run_of, series
from tests.records.sample import quick_recipe

SIGMA = Prior(1e-4, 19.0, "test")


def curve(tokens: float) -> float:
    """A loss that is linear in ln N."""
    return 1.0 - 0.02 * math.log(tokens)


def horizon(tokens: int, noise: float = 0.0, n: int = 3, seed: int = 0, centred: bool = False) -> HorizonRuns:
    random = np.random.default_rng(seed + tokens)
    draws = random.standard_normal(n)
    scores = curve(tokens) + noise * (draws - draws.mean() if centred else draws)
    seconds = tokens * np.exp(0.001 * random.standard_normal(n))
    return HorizonRuns(tokens=tokens, seconds=tuple(map(float, seconds)), scores=tuple(map(float, scores)))


def test_measured_is_the_geometric_mean_of_the_first_horizon_that_all_pass() -> None:
    runs = [
        HorizonRuns(tokens=100, seconds=(90.0, 110.0), scores=(0.9, 1.1)),
        HorizonRuns(tokens=200, seconds=(160.0, 250.0), scores=(0.8, 0.9)),
        HorizonRuns(tokens=300, seconds=(300.0, 300.0), scores=(0.7, 0.7)),
    ]
    found = time_to_target(runs, 1.0)
    assert (found.method, found.seconds) == ("measured", pytest.approx(200.0))
    assert found.low is not None
    assert found.high is not None
    assert found.low * found.high == pytest.approx(200.0**2)


@given(st.floats(101, 199))
def test_between_two_horizons_the_answer_is_exact_on_a_logarithmic_curve(at: float) -> None:
    runs = [HorizonRuns(tokens=n, seconds=(float(n),) * 2, scores=(curve(n),) * 2) for n in (100, 200)]
    measured, bracketed = estimates(runs, curve(at), prior=SIGMA)
    assert (measured.method, measured.seconds) == ("measured", pytest.approx(200.0))
    assert (bracketed.method, bracketed.seconds) == ("bracketed", pytest.approx(at, rel=1e-6))


def test_the_bracket_covers_the_truth_nineteen_times_of_twenty() -> None:
    hits = 0
    for seed in range(200):
        runs = [horizon(n, 2e-4, n=2, seed=1000 * seed) for n in (1000, 2000)]
        *_, found = estimates(runs, curve(1400), prior=Prior(2e-4, 19.0, "test"))
        assert found.method == "bracketed"
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1400 <= found.high
    assert hits >= 180


def test_a_short_extrapolation_is_allowed_and_near() -> None:
    runs = [horizon(n, 2e-5) for n in (1000, 1050, 1100)]
    found = time_to_target(runs, curve(1130), prior=Prior(2e-5, 19.0, "test"))
    assert found.method == "extrapolated"
    assert found.seconds == pytest.approx(1130, rel=0.02)
    assert found.bootstrap is not None
    assert found.bootstrap[0] < found.bootstrap[1]


@pytest.mark.parametrize(
    ("tokens", "at", "noise", "why"),
    [
        ((1000, 1100, 1200), 2000, 1e-6, "at most 15 %"),
        ((1000, 1100, 1200), 1250, 3e-3, "known to"),
        ((1000, 1200), 1250, 1e-6, "2 horizons"),
    ],
)
def test_what_may_not_be_extrapolated(tokens: tuple[int, ...], at: float, noise: float, why: str) -> None:
    prior = Prior(noise, 19.0, "test")
    found = time_to_target([horizon(n, noise, centred=True) for n in tokens], curve(at), prior=prior)
    assert (found.method, found.seconds) == ("none", None)
    assert why.replace("15 %", "15%") in found.why


def test_longer_runs_that_are_worse_lead_nowhere() -> None:
    runs = [
        HorizonRuns(tokens=n, seconds=(float(n),) * 2, scores=(n / 100, n / 100)) for n in (100, 110, 120)
    ]
    assert time_to_target(runs, 0.5, prior=SIGMA).why == "longer runs are not better"


def test_a_score_that_is_better_higher_is_the_mirror_image() -> None:
    runs = [horizon(n, 1e-5) for n in (1000, 2000)]
    mirrored = [
        HorizonRuns(tokens=h.tokens, seconds=h.seconds, scores=tuple(-s for s in h.scores)) for h in runs
    ]
    there = time_to_target(runs, curve(1500), prior=SIGMA)
    assert there == time_to_target(mirrored, -curve(1500), better="higher", prior=SIGMA)


def test_a_run_reaches_its_target_when_an_evaluation_says_so() -> None:
    run = changed(
        run_of("a", 0, 2.5),
        "curves",
        bpb_steps=[20, 40, 64],
        bpbs=[3.0, 2.8, 2.5],
        logged_steps=[16, 32, 64],
        logged_seconds=[4.0, 8.0, 15.5],
    )
    assert first_reached(run, 2.9) == pytest.approx(8.0 + 7.5 / 4)
    assert first_reached(run, 2.5) == 15.5
    assert first_reached(run, 2.4) is None
    assert seconds_at(run, 8) == 2.0
    core = changed(run, "scores", metric="core", value=0.3)
    assert first_reached(core, 0.25, "higher") == core.timing.official_s
    assert first_reached(core, 0.35, "higher") is None


def test_horizons_are_recipes_that_differ_in_their_horizon_alone() -> None:
    import msgspec

    from bench.spec.recipe import Horizon

    longer = msgspec.structs.replace(quick_recipe(), horizon=Horizon(iterations=128))
    deeper = msgspec.structs.replace(
        longer, model=msgspec.structs.replace(longer.model, depth=5, aspect_ratio=51)
    )
    records = [
        *series("quick", [2.5, 2.6]),
        *[changed(run, "shape", tokens=2**19) for run in series("long", [2.4, 2.3], recipe=longer)],
        *series("deep", [2.2], recipe=deeper),
    ]
    quick = next(s for s in all_series(records) if s.recipe == "quick")
    found = horizons_of(records, quick)
    assert [h.scores for h in found] == [(2.5, 2.6), (2.4, 2.3)]
    assert found[0].tokens < found[1].tokens
