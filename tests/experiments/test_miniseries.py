"""Miniseries by records: found by their method, paired by seed, refused where the work was not equal."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from bench.errors import RecipeError
from bench.experiments.depth_gate import DepthGate
from bench.experiments.gates import judge
from bench.experiments.miniseries import Miniseries, find_miniseries, gate_miniseries, problems_of
from bench.experiments.profile import ratios
from bench.host.machine import detect
from bench.host.planning import default_track
from bench.records.schema import Record
from bench.spec.track import load_tracks
from tests.experiments.depths import BASELINE, CANDIDATE, OWN, TRACK, arm, run_at
from tests.experiments.runs import changed
from tests.experiments.test_gates import evidence, faster
from tests.records.sample import FACTS, ROOT

BASE = arm((0.0, 0.0, 0.0), 0.0)


def found_in(records: Sequence[Record]) -> Miniseries:
    return find_miniseries([BASELINE, CANDIDATE, *records], BASELINE, CANDIDATE, None)


def gated(records: Sequence[Record], target: int | None = None) -> DepthGate:
    return gate_miniseries(found_in(records), TRACK, target)


def test_a_gain_at_every_depth_passes() -> None:
    made = gated([*BASE, *arm((0.01, 0.011, 0.01), 0.01)])
    assert made.verdict == "pass", made.reasons
    assert [d.depth for d in made.depths] == [4, 6, 8]
    assert [d.num_seeds for d in made.depths] == [3, 3, 3]
    assert made.depths[0].delta == pytest.approx(-0.01 + sum(OWN) / 3)
    assert made.spread == "of all depths"  # two degrees of freedom each
    assert made.depths[2].parameters > 6 * made.depths[0].parameters
    assert gated([*BASE, *arm((0.01, 0.011, 0.01), 0.01)], target=24).reasons == (
        "a claim about d24 needs runs at d16 or deeper",
    )


def test_harm_at_the_deepest_fails() -> None:
    made = gated([*BASE, *arm((0.02, 0.01, -0.01), 0.01)])
    assert made.verdict == "fail"
    assert made.harms
    assert any(reason.startswith("harm at d8: +0.01") for reason in made.reasons)


def test_a_depth_that_one_of_them_lacks_is_missing() -> None:
    made = gated([*BASE, *arm((0.01, 0.01), 0.01, (4, 6))])
    assert made.verdict == "not shown"
    assert made.reasons == (
        "d8: no finished run of the candidate on a seed of the other",
        "2 depths, 3 are the least",
    )
    two_seeds = [r for r in arm((0.01, 0.01, 0.01), 0.01) if (r.shape.depth, r.identity.seed_index) != (6, 2)]
    assert gated([*BASE, *two_seeds]).reasons == ("d6 has 2 seeds in common, 3 are the least",)


def test_runs_are_found_by_their_method_whatever_they_are_called() -> None:
    renamed = [changed(r, "identity", recipe="other") for r in arm((0.01, 0.01, 0.01), 0.01)]
    stranger = run_at(6, 0, 1.0, 0.5)
    found = found_in([*BASE, *renamed, stranger])
    assert found.track == "cpu-miniseries"
    assert [sorted(pair.candidate) for pair in found.pairs] == [[0, 1, 2]] * 3
    assert found.others == [stranger]
    repeated = msgspec.structs.replace(run_at(4, 0, 1.0, 0.01), created="2027-01-01T00:00:00Z")
    assert found_in([*BASE, *renamed, repeated]).pairs == found.pairs  # the first run of a seed counts
    with pytest.raises(RecipeError, match="no miniseries of new and quick on any track"):
        found_in(BASE)
    with pytest.raises(RecipeError, match="on d12-local"):
        find_miniseries([*BASE, *renamed], BASELINE, CANDIDATE, "d12-local")


def test_more_work_than_the_baseline_had_is_no_gain() -> None:
    dearer = [changed(r, "shape", total_flops=1.05 * r.shape.total_flops) for r in arm((0.01,) * 3, 0.01)]
    made = gated([*BASE, *dearer])
    assert made.verdict == "not shown"
    assert made.reasons[0] == "d4: 1.050 of the baseline's FLOPs"
    cheaper = [changed(r, "shape", total_flops=0.9 * r.shape.total_flops) for r in arm((0.01,) * 3, 0.01)]
    assert gated([*BASE, *cheaper]).verdict == "pass"


def test_equal_seconds_are_equal_on_one_machine_only() -> None:
    def timed(records: list[Record], device: str) -> list[Record]:
        fields = ["horizon.seconds", "model.sequence_length"]
        made = [changed(r, "identity", track_fields=fields) for r in records]
        return [changed(r, "machine", facts=FACTS | {"device_name": device}) for r in made]

    new = arm((0.01, 0.011, 0.01), 0.01)
    assert gated([*timed(BASE, "A"), *timed(new, "A")]).verdict == "pass"
    mixed = gated([*timed(BASE, "A"), *timed(new, "B")])
    assert mixed.verdict == "not shown"
    assert mixed.reasons[0] == "d4: equal seconds on machines of several kinds are not equal budgets"
    longer = timed(arm((0.01,) * 3, 0.01, seconds=32.0), "A")
    assert "of the baseline's time" in gated([*timed(BASE, "A"), *longer]).reasons[0]


def test_at_equal_flops_machines_may_differ_but_times_are_not_compared() -> None:
    new = arm((0.01, 0.011, 0.01), 0.01)
    other = [changed(r, "machine", facts=FACTS | {"device_name": "B"}) for r in new]
    made = gated([*BASE, *other])
    assert made.verdict == "pass"
    assert {d.time_ratio for d in made.depths} == {None}
    assert problems_of(found_in([*BASE, *other]), "lower") == []


def test_the_profile_is_of_times_to_the_baselines_worst_seed() -> None:
    quick = arm((0.01, 0.01, -0.05), 0.01, seconds=15.0)
    problems = problems_of(found_in([*BASE, *quick]), "lower")
    assert [problem.name for problem in problems] == ["d4", "d6", "d8"]
    found = ratios(problems)
    assert found["candidate"][:2] == [1.0, 1.0]
    assert found["baseline"][0] == pytest.approx(30.5 / 15.5)
    assert found["candidate"][2] == float("inf")  # it never gets there at d8


def test_the_gate_takes_the_miniseries_as_its_criterion() -> None:
    for gains, outcome in (((0.01,) * 3, "pass"), ((0.0,) * 3, "not shown"), ((-0.01,) * 3, "fail")):
        depths = gated([*BASE, *arm(gains, 0.01)])
        (criterion,) = (c for c in judge(evidence(faster(), miniseries=depths)) if c.number == "6.4")
        assert criterion.outcome == outcome, criterion
        assert criterion.figures["d8_delta"] == pytest.approx(-gains[2] + sum(OWN) / 3)
        assert criterion.figures["verdict"] == ("pass" if outcome == "pass" else "fail")


def test_a_cpu_still_takes_its_first_track_where_none_is_named() -> None:
    tracks = load_tracks(ROOT / "leaderboard" / "tracks")
    (own,) = (track for track in tracks if track.name == "gpt2-8xh100")
    assert default_track(own, tracks, detect("cpu", environment={}))[0].name == "cpu-quick"
