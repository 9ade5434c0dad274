"""Two one-sided tests over pairs of seeds: what shows a claim of equivalence, and what does not."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.distributions import t_quantile
from bench.records.equivalence import T_95, Equivalence, equivalence, half_width
from bench.records.schema import Record
from bench.spec.recipe import Recipe
from bench.spec.track import Track
from tests.records.sample import changed, quick_recipe, quick_track, sample

TRACK = quick_track().track
MARGIN = TRACK.score.equivalence
FASTER = msgspec.structs.replace(
    quick_recipe(),
    systems_only="quick",
    checkpoint=msgspec.structs.replace(quick_recipe().checkpoint, every_steps=7),
)
OTHER = msgspec.structs.replace(FASTER, loss=msgspec.structs.replace(FASTER.loss, z_loss=0.1))


def series(name: str, bpbs: Sequence[float | None], recipe: Recipe | None = None) -> list[Record]:
    return [sample(name, seed, bpb, recipe)[0] for seed, bpb in enumerate(bpbs)]


def judged(
    bpbs: Sequence[float | None],
    base: Sequence[float | None] = (2.5, 2.52, 2.47),
    recipe: Recipe = FASTER,
    track: Track = TRACK,
) -> Equivalence:
    mine, other = series("faster", bpbs, recipe), series("quick", base)
    found = equivalence(mine, [other, mine], track)
    assert found is not None
    assert found.base == "quick"
    return found


def test_without_a_claim_there_is_nothing_to_judge() -> None:
    mine = series("quick", (2.5, 2.5, 2.5))
    assert equivalence(mine, [mine], TRACK) is None


@given(gaps=st.lists(st.floats(-MARGIN / 8, MARGIN / 8), min_size=3, max_size=3))
def test_differences_well_within_the_margin_are_equivalent(gaps: list[float]) -> None:
    """The interval is at most 1.69 standard deviations wide on each side of three pairs' mean."""
    found = judged([2.5 + gaps[0], 2.52 + gaps[1], 2.47 + gaps[2]])
    assert found.verdict == "equivalent"


@given(gap=st.floats(MARGIN * 1.001, 1.0), sign=st.sampled_from((-1, 1)))
def test_a_mean_beyond_the_margin_is_not_and_better_is_no_excuse(gap: float, sign: int) -> None:
    found = judged([2.5 + sign * gap, 2.52 + sign * gap, 2.47 + sign * gap])
    assert found.verdict == "not shown"


def test_the_seeds_own_spread_does_not_count_the_pairs_does() -> None:
    apart = (1.9, 2.5, 3.1)
    assert judged([bpb + 1e-5 for bpb in apart], apart).verdict == "equivalent"
    assert judged([1.9 + 3e-4, 2.5, 3.1 - 3e-4], apart).verdict == "not shown"


def test_the_margin_is_the_tracks() -> None:
    wide = msgspec.structs.replace(TRACK, score=msgspec.structs.replace(TRACK.score, equivalence=0.05))
    far = [2.51, 2.53, 2.48]
    assert judged(far).verdict == "not shown"
    assert judged(far, track=wide).verdict == "equivalent"


def test_another_method_is_told_by_its_field_whatever_it_scored() -> None:
    found = judged([2.5, 2.52, 2.47], recipe=OTHER)
    assert found.verdict == "another method"
    assert "loss.z_loss" in found.says


def test_a_claim_waits_for_its_base_and_for_every_seed() -> None:
    mine = series("faster", (2.5, 2.5, 2.5), FASTER)
    alone = equivalence(mine, [mine], TRACK)
    assert alone is not None
    assert alone.verdict == "waiting"
    assert judged([2.5, 2.52]).verdict == "waiting"
    assert judged([2.5, 2.52, 2.47], base=[2.5, 2.52]).says.endswith("seeds 2 have no pair of runs")


def test_a_diverged_run_shows_nothing() -> None:
    assert judged([2.5, None, 2.47]).verdict == "not shown"


def test_a_seed_more_after_a_look_changes_nothing() -> None:
    few = judged([2.5003, 2.5203, 2.4703])
    more = judged([2.5003, 2.5203, 2.4703, 2.4, 2.4], base=[2.5, 2.52, 2.47, 2.4, 2.4])
    assert few == more


def test_the_same_weights_need_no_statistics() -> None:
    base = series("quick", (2.5, 2.52, 2.47))
    mine = [
        changed(one, "scores.weights_sha256", other.scores.weights_sha256)
        for one, other in zip(series("faster", (2.5, 2.52, 2.47), FASTER), base, strict=True)
    ]
    one_seed = msgspec.structs.replace(TRACK, seeds=msgspec.structs.replace(TRACK.seeds, count=1))
    found = equivalence(mine, [base, mine], one_seed)
    assert found is not None
    assert found.verdict == "equivalent"
    assert "bit for bit" in found.says
    unequal = series("faster", (2.5,), FASTER)
    again = equivalence(unequal, [base, unequal], one_seed)
    assert again is not None
    assert again.verdict == "not shown"


def test_under_a_clock_a_faster_step_trains_longer() -> None:
    timed = msgspec.structs.replace(TRACK, scale={**TRACK.scale, "horizon": {"seconds": 300.0}})
    assert judged([2.4, 2.4, 2.4], track=timed).verdict == "not judged"


def test_figures_beyond_all_bounds_show_nothing() -> None:
    assert judged([1e308, 1e308, 1e308], base=[-1e308, -1e308, -1e308]).verdict == "not shown"


@pytest.mark.parametrize("degrees", range(1, len(T_95) + 1))
def test_the_quantiles_are_students(degrees: int) -> None:
    assert T_95[degrees - 1] == pytest.approx(t_quantile(0.95, degrees), abs=6e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of a true difference at the margin, one time in twenty is called equivalent, or less often."""
    rng = random.Random(1)
    wrong, num_trials = 0, 4000
    for _ in range(num_trials):
        gaps = [rng.gauss(MARGIN, MARGIN / 4) for _ in range(3)]
        wrong += abs(math.fsum(gaps) / 3) + half_width(gaps) < MARGIN
    assert wrong / num_trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_trials)
