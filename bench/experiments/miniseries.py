"""The miniseries of two methods: their records at several depths of one track, paired. Imports no torch.

A method is a recipe but for its depth, its words and what the track sets: its runs are found by that, under
whatever name a sweep gave them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from bench.errors import RecipeError
from bench.experiments.depth_gate import (
    OWN_SPREAD_DOF,
    DepthDifference,
    DepthGate,
    common_spread,
    depth_difference,
    gate_depths,
)
from bench.experiments.profile import Problem
from bench.experiments.series import first_runs
from bench.experiments.statistics import Difference, Prior, calibration, paired
from bench.experiments.time_to_target import first_reached
from bench.records.schema import Record
from bench.spec.plan import model_config
from bench.spec.recipe import DESCRIPTIVE, Recipe
from bench.spec.submission import flatten
from bench.spec.track import NamedTrack, on_track
from model.flops import scaling_parameters

MATCHED_WITHIN = 0.01  # whole steps make budgets unequal
Runs = Mapping[int, Record]  # by seed index


class Pair(NamedTuple):
    """Both methods' finished runs at one depth."""

    depth: int
    baseline: Runs
    candidate: Runs

    @property
    def shared(self) -> list[int]:
        """Seeds that both finished."""
        return sorted(self.baseline.keys() & self.candidate.keys())


class Miniseries(NamedTuple):
    """Two methods on one track over one text, depth by depth."""

    track: str
    pairs: list[Pair]
    others: list[Record]  # other methods' runs there, which tell the spread

    @property
    def records(self) -> list[Record]:
        """Every run it rests on."""
        return [run for pair in self.pairs for runs in pair[1:] for run in runs.values()]


def method_key(record: Record, track_fields: Sequence[str]) -> str:
    """A recipe as text without its words, its depth and what a track sets."""
    fields = flatten(record.identity.recipe_resolved)
    has_horizon = any(field.startswith("horizon.") for field in track_fields)
    left_out = {"model.depth", *track_fields}
    kept = {
        field: value
        for field, value in fields.items()
        if field not in left_out and field.split(".")[0] not in DESCRIPTIVE
        if not (has_horizon and field.startswith("horizon."))
    }
    return json.dumps(kept, sort_keys=True)


def find_miniseries(
    records: Sequence[Record], baseline: Record, candidate: Record, track: str | None
) -> Miniseries:
    """The runs of both methods on the track named, or on the one where both were run at most depths.

    Args:
        baseline: any run of that method, on any track.

    Raises:
        RecipeError: there are none.
    """
    places: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if track in (None, record.identity.track):
            places[record.identity.track, record.data.corpus_sha256].append(record)
    found = [_paired_up(name, runs, baseline, candidate) for (name, _), runs in sorted(places.items())]
    whole = [one for one in found if len([pair for pair in one.pairs if pair.shared]) > 1]
    if not whole:
        where = f"on {track}" if track else "on any track"
        raise RecipeError(
            f"no miniseries of {candidate.identity.recipe} and {baseline.identity.recipe} {where}: "
            "their methods share seeds at no two depths",
            "`bench sweep submissions/sweeps/miniseries-cpu.toml --base-recipe RECIPE` runs one",
        )
    return max(whole, key=lambda one: (len(one.pairs), max(run.created for run in one.records)))


def _paired_up(track: str, runs: Sequence[Record], baseline: Record, candidate: Record) -> Miniseries:
    arms: tuple[dict[int, list[Record]], dict[int, list[Record]]] = (defaultdict(list), defaultdict(list))
    others = []
    for run in runs:
        fields = run.identity.track_fields
        key = method_key(run, fields)
        same = [key == method_key(one, fields) for one in (baseline, candidate)]
        for arm, is_same in zip(arms, same, strict=True):
            if is_same:
                arm[run.shape.depth].append(run)
        others += [] if any(same) else [run]
    depths = sorted(arms[0].keys() | arms[1].keys())
    pairs = [Pair(depth, _finished(arms[0][depth]), _finished(arms[1][depth])) for depth in depths]
    return Miniseries(track, pairs, others)


def _finished(runs: Sequence[Record]) -> Runs:
    """The first run of each seed, of those that were scored."""
    return {
        run.identity.seed_index: run
        for run in first_runs(runs)
        if run.status == "ok" and run.scores.value is not None
    }


def gate_miniseries(found: Miniseries, track: NamedTrack, target_depth: int | None) -> DepthGate:
    """The gate on a miniseries.

    Args:
        target_depth: the depth that the claim is about; default: the deepest that was run.
    """
    sign = 1.0 if track.track.score.better == "lower" else -1.0
    tests = {pair.depth: _tested(pair, sign, _prior_at(found.others, pair.depth)) for pair in found.pairs}
    known = {depth: test for depth, test in tests.items() if test is not None}
    is_common = any(test.dof < OWN_SPREAD_DOF for test in known.values())
    if is_common:
        known = dict(zip(known, common_spread(list(known.values())), strict=True))
    depths, gaps = [], []
    for pair in found.pairs:
        if pair.depth in known:
            depths.append(_at_depth(pair, known[pair.depth]))
            unequal = _unequal(depths[-1], any(_is_timed(run) for arm in pair[1:] for run in arm.values()))
            gaps += [unequal] if unequal else []
        elif pair.shared:
            gaps.append(f"d{pair.depth}: one seed tells nothing of the spread")
        else:
            lacking = "candidate" if pair.baseline else "baseline"
            gaps.append(f"d{pair.depth}: no finished run of the {lacking} on a seed of the other")
    aimed_at = target_depth or found.pairs[-1].depth
    parameters = _parameters_at(found, track, aimed_at)
    return gate_depths(depths, gaps, aimed_at, parameters, is_common=is_common)


def _tested(pair: Pair, sign: float, prior: Prior | None) -> Difference | None:
    a, b = ([sign * _score(runs[seed]) for seed in pair.shared] for runs in (pair.baseline, pair.candidate))
    return paired(a, b, prior)


def _at_depth(pair: Pair, test: Difference) -> DepthDifference:
    a, b = ([runs[seed] for seed in pair.shared] for runs in (pair.baseline, pair.candidate))
    flops = [statistics.fmean(run.shape.total_flops for run in runs) for runs in (a, b)]
    logs = [statistics.fmean(math.log(run.timing.official_s) for run in runs) for runs in (a, b)]
    same_machine = len({_machine(run) for run in (*a, *b)}) == 1
    return depth_difference(
        test,
        depth=pair.depth,
        parameters=a[0].shape.scaling_parameters,
        flops_ratio=flops[1] / flops[0],
        time_ratio=math.exp(logs[1] - logs[0]) if same_machine else None,
    )


def _unequal(made: DepthDifference, is_timed: bool) -> str:
    """Why the two budgets at a depth are not equal; less of it than the baseline had is no advantage."""
    if is_timed and made.time_ratio is None:
        return f"d{made.depth}: equal seconds on machines of several kinds are not equal budgets"
    ratio = made.time_ratio if is_timed else made.flops_ratio
    assert ratio is not None
    what = "time" if is_timed else "FLOPs"
    return f"d{made.depth}: {ratio:.3f} of the baseline's {what}" if ratio > 1.0 + MATCHED_WITHIN else ""


def _is_timed(run: Record) -> bool:
    resolved = msgspec.convert(run.identity.recipe_resolved, Recipe)
    by_track = [field for field in run.identity.track_fields if field.startswith("horizon.")]
    return by_track == ["horizon.seconds"] if by_track else resolved.horizon.seconds is not None


def _score(run: Record) -> float:
    assert run.scores.value is not None
    return run.scores.value


def _machine(run: Record) -> tuple[object, ...]:
    facts = run.machine.facts
    return tuple(facts.get(name) for name in ("device_kind", "device_name", "device_count", "cpu_cores"))


def _prior_at(others: Sequence[Record], depth: int) -> Prior | None:
    """What other methods' runs at this depth tell of the spread."""
    arms: dict[str, list[Record]] = defaultdict(list)
    for run in others:
        if run.shape.depth == depth:
            arms[run.identity.recipe_sha256].append(run)
    scores = [[_score(run) for run in _finished(runs).values()] for runs in arms.values()]
    return calibration(scores, f"{len(arms)} other methods at d{depth}")


def _parameters_at(found: Miniseries, track: NamedTrack, depth: int) -> int:
    """Scaling parameters of the baseline at a depth, run there or not."""
    run = next(run for pair in found.pairs for run in pair.baseline.values())
    recipe = on_track(msgspec.convert(run.identity.recipe_resolved, Recipe), track.track, run.identity.recipe)
    return scaling_parameters(model_config(recipe, depth))


def problems_of(found: Miniseries, better: str) -> list[Problem]:
    """Each depth as a problem: the time in which every seed reaches what the baseline's worst seed ends with.

    A depth whose runs are of several kinds of machine is none.
    """
    problems = []
    for pair in found.pairs:
        runs = [[arm[seed] for seed in pair.shared] for arm in pair[1:]]
        if not pair.shared or len({_machine(run) for arm in runs for run in arm}) > 1:
            continue
        worst = max if better == "lower" else min
        target = worst(_score(run) for run in runs[0])
        times = {
            name: _geometric_mean([first_reached(run, target, better) for run in arm])
            for name, arm in zip(("baseline", "candidate"), runs, strict=True)
        }
        problems.append(Problem(f"d{pair.depth}", times))
    return problems


def _geometric_mean(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return math.exp(statistics.fmean(map(math.log, known))) if len(known) == len(seconds) else None
