"""`bench gate`: records in, a decision out. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bench.errors import RecipeError
from bench.experiments.decisions import SCHEMA, Decision
from bench.experiments.depth_gate import DepthGate
from bench.experiments.gates import Evidence, decide, judge, time_difference
from bench.experiments.miniseries import find_miniseries, gate_miniseries, problems_of
from bench.experiments.profile import Problem
from bench.experiments.series import Series, priors, two_series
from bench.experiments.time_to_target import horizons_of, time_to_target
from bench.records.schema import Record
from bench.records.store import StoredRecord
from bench.records.verify import verify
from bench.spec.recipe import Recipe
from bench.spec.submission import short_name
from bench.spec.track import NamedTrack, load_track
from bench.spec.workspace import Workspace


class GateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: who against whom, and what only a person can tell."""

    candidate: str
    baseline: str
    track: str | None = None
    target: float | None = None  # default: the track's
    cycle: int = 1
    phase: int = 1
    miniseries: str | None = None  # the track of its runs; "": the one with most depths; None: not asked
    target_depth: int | None = None  # of the claim; default: the deepest that was run
    concerns: tuple[str, ...] = ()


class Judged(NamedTuple):
    """A decision, and the miniseries in it, where there is one."""

    decision: Decision
    depths: DepthGate | None
    problems: list[Problem]


def gate(space: Workspace, stored: Sequence[StoredRecord], request: GateRequest) -> Judged:
    """The decision on a candidate."""
    records = [each.record for each in stored]
    baseline, candidate = two_series(records, request.baseline, request.candidate, request.track)
    if not baseline.finished:
        raise RecipeError(f"no finished run of {baseline.recipe} on {baseline.track}", "all of them diverged")
    track = load_track(baseline.track, space.tracks)
    evidence = _evidence(stored, records, baseline, candidate, track, request)
    if request.miniseries is None:
        return Judged(decision_of(evidence, request), None, [])
    found = find_miniseries(records, baseline.runs[0], candidate.runs[0], request.miniseries or None)
    on = load_track(found.track, space.tracks)
    depths = gate_miniseries(found, on, request.target_depth)
    whole = msgspec.structs.replace(evidence, miniseries=depths)
    tips = [run.events_sha256_tip for run in found.records]
    return Judged(decision_of(whole, request, tips), depths, problems_of(found, on.track.score.better))


def _evidence(
    stored: Sequence[StoredRecord],
    records: Sequence[Record],
    baseline: Series,
    candidate: Series,
    track: NamedTrack,
    request: GateRequest,
) -> Evidence:
    score = track.track.score
    target = request.target if request.target is not None else (score.target or None)
    score_prior, time_prior = priors(records, baseline, candidate)
    times = None
    if target is not None:
        found = [
            time_to_target(horizons_of(records, s), target, better=score.better, prior=score_prior)
            for s in (baseline, candidate)
        ]
        times = (found[0], found[1])
    tips = {run.events_sha256_tip for run in candidate.runs}
    problems = [p for each in stored if each.record.events_sha256_tip in tips for p in verify(each, track)]
    return Evidence(
        baseline=baseline,
        candidate=candidate,
        better=score.better,
        target=target,
        times=times,
        score_prior=score_prior,
        time_prior=time_prior,
        record_problems=tuple(problems),
        concerns=request.concerns,
    )


def decision_of(evidence: Evidence, request: GateRequest, tips: Sequence[str] = ()) -> Decision:
    """The evidence judged.

    Args:
        tips: of the miniseries' event logs.
    """
    criteria = judge(evidence)
    decided, reasons = decide(criteria)
    times = time_difference(evidence) if evidence.candidate.finished else None
    both = (evidence.baseline, evidence.candidate)
    recipes = [msgspec.convert(s.runs[0].identity.recipe_resolved, Recipe) for s in both]
    medians = [
        statistics.median(bpbs)
        if (bpbs := [r.scores.val_bpb for r in s.finished.values() if r.scores.val_bpb])
        else None
        for s in both
    ]
    known = medians[0] is not None and medians[1] is not None
    return Decision(
        schema=SCHEMA,
        date=max(run.created for run in evidence.candidate.runs),
        track=evidence.baseline.track,
        candidate=evidence.candidate.recipe,
        baseline=evidence.baseline.recipe,
        change=short_name(recipes[1], recipes[0]),
        cycle=request.cycle,
        phase=request.phase,
        time_gain=-math.expm1(times.estimate) if times else None,
        robust_gain=max(-math.expm1(times.high), 0.0) if times else None,
        bpb_difference=(medians[1] or 0.0) - (medians[0] or 0.0) if known else None,
        miniseries=evidence.miniseries.verdict if evidence.miniseries else "not run",
        criteria=criteria,
        decision=decided,
        reasons=reasons,
        records=sorted({*(run.events_sha256_tip for s in both for run in s.runs), *tips}),
    )


def decision_text(decision: Decision) -> str:
    """The decision for people."""
    lines = [f"{decision.candidate} against {decision.baseline} on {decision.track}: {decision.change}", ""]
    for c in decision.criteria:
        told = {} if c.number == "6.4" else c.figures  # the miniseries has a table of its own
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in told.items() if value is not None)
        lines.append(f"  {c.number:<6} {c.name:<28} {c.outcome:<15} {figures}")
        lines += [f"         {c.why}"] if c.why else []
    return "\n".join([*lines, "", f"{decision.decision}: {'; '.join(decision.reasons)}"])


def _shown(value: float | int | str) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
