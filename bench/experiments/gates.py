"""The acceptance gate: what a candidate must show against a baseline to become the default. Imports no torch.

The numbers of the criteria are those of the project's two plans: 7.1.1 to 7.1.6 of the first, 6.1 to 6.4 of
the second, whose 6.1 is 7.1.1 again. 7.4 names what takes a candidate back out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from bench.experiments.compare import smoothed
from bench.experiments.depth_gate import DepthGate
from bench.experiments.depth_gate import figures as depth_figures
from bench.experiments.series import Series
from bench.experiments.statistics import Difference, Prior, contrast, paired
from bench.experiments.time_to_target import TimeToTarget, first_reached
from bench.spec.recipe import Recipe
from bench.spec.submission import differences

MIN_SEEDS = 2
MIN_TIME_GAIN = 0.03  # 7.1.2
MAX_LOSS_RISE = 0.01  # 7.1.5, relative
MAX_BPB_RISE = 0.005  # 7.1.6, absolute

Outcome = Literal["pass", "fail", "not shown", "not applicable"]
Decided = Literal["promote", "optional", "reject"]


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One criterion with the figures it was decided by."""

    number: str
    name: str
    outcome: Outcome
    figures: Mapping[str, float | int | str | None]
    why: str = ""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that the gate looks at."""

    baseline: Series
    candidate: Series
    better: str
    target: float | None
    times: tuple[TimeToTarget, TimeToTarget] | None = None  # baseline, candidate: over horizons
    score_prior: Prior | None = None
    time_prior: Prior | None = None
    record_problems: tuple[str, ...] = ()  # what verifying the candidate's records found
    miniseries: DepthGate | None = None  # None: not run
    concerns: tuple[str, ...] = ()  # a maintainer's: complexity, or behaviour that is harder to reason about

    @property
    def shared(self) -> list[int]:
        """Seeds that both finished."""
        return sorted(self.baseline.finished.keys() & self.candidate.finished.keys())


def judge(evidence: Evidence) -> list[Criterion]:
    """Every criterion of both plans, in their order."""
    quality = [_loss_floor(evidence), _bpb_floor(evidence)]
    time = _time_to_target(evidence)
    return [
        time,
        _wall_time(evidence, time, quality),
        _stability(evidence),
        _resume(evidence),
        *quality,
        _no_regression(evidence),
        _compile_path(evidence),
        _generalisation(evidence),
        *_rollback(evidence),
    ]


def decide(criteria: Sequence[Criterion]) -> tuple[Decided, list[str]]:
    """The decision and its reasons: harm rejects, what is not shown keeps it optional."""
    failed = [c for c in criteria if c.outcome == "fail"]
    unshown = [c for c in criteria if c.outcome == "not shown"]
    harmed = [c for c in failed if c.number not in GAINS]
    if harmed or failed:
        decided: Decided = "reject" if harmed or all(_is_loss(c) for c in failed) else "optional"
        return decided, [f"{c.number} {c.name}: {c.why}" for c in (harmed or failed)]
    if unshown:
        return "optional", [f"{c.number} {c.name}: {c.why}" for c in unshown]
    return "promote", ["every criterion that applies is passed"]


GAINS = ("7.1.1", "7.1.2")


def _is_loss(criterion: Criterion) -> bool:
    """Whether the candidate is no faster at all, rather than too little faster."""
    ratio = criterion.figures.get("time_ratio")
    return not isinstance(ratio, float) or ratio >= 1.0


def time_difference(evidence: Evidence) -> Difference | None:
    """ln t of the candidate less the baseline's, over shared seeds where they are paired."""
    a, b = evidence.baseline.log_times(), evidence.candidate.log_times()
    if a.keys() == b.keys():
        return paired([a[i] for i in sorted(a)], [b[i] for i in sorted(b)], evidence.time_prior)
    return contrast((-1.0, 1.0), (list(a.values()), list(b.values())), evidence.time_prior)


def _time_to_target(evidence: Evidence) -> Criterion:
    """7.1.1: less time to the target on every shared seed; where no run reaches it, by horizons."""
    name = "time to target on two seeds"

    def told(outcome: Outcome, why: str, **figures: float | int | str | None) -> Criterion:
        about = {"target": evidence.target, "num_seeds": len(evidence.shared), **figures}
        return Criterion(number="7.1.1", name=name, outcome=outcome, figures=about, why=why)

    if evidence.target is None:
        return told("not applicable", "no target is declared: 7.1.2 decides")
    if len(evidence.shared) < MIN_SEEDS:
        return told("not shown", f"{len(evidence.shared)} seeds in common, {MIN_SEEDS} are the least")
    pairs = [
        tuple(
            first_reached(series.finished[i], evidence.target, evidence.better)
            for series in (evidence.baseline, evidence.candidate)
        )
        for i in evidence.shared
    ]
    measured = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(measured) == len(pairs):
        ratio = math.exp(statistics.fmean(math.log(b / a) for a, b in measured))
        slower = sum(b >= a for a, b in measured)
        why = f"not faster on {slower} of {len(pairs)} seeds" if slower else ""
        return told("fail" if slower else "pass", why, method="measured", time_ratio=ratio)
    if any(b is None and a is not None for a, b in pairs):
        return told("fail", "the baseline reaches the target where the candidate does not", method="measured")
    times = evidence.times
    if times and times[0].seconds and times[1].seconds:
        ratio = times[1].seconds / times[0].seconds
        method = f"{times[0].method}, {times[1].method}"
        why = "" if ratio < 1.0 else "not faster"
        return told("fail" if ratio >= 1.0 else "pass", why, method=method, time_ratio=ratio)
    return told("not applicable", "the target is not reached in the budget: 7.1.2 decides")


def _wall_time(evidence: Evidence, time: Criterion, quality: Sequence[Criterion]) -> Criterion:
    """7.1.2: where 7.1.1 does not apply, 3 % less official time at matched quality."""
    found = time_difference(evidence)
    figures: dict[str, float | int | str | None] = {"needed_gain": MIN_TIME_GAIN}
    if found is not None:
        figures |= {
            "time_ratio": math.exp(found.estimate),
            "time_ratio_low": math.exp(found.low),
            "time_ratio_high": math.exp(found.high),
            "p_two_sided": found.p_two_sided,
        }
    outcome: Outcome = "pass"
    why = ""
    if time.outcome != "not applicable":
        outcome, why = "not applicable", "7.1.1 decides"
    elif found is None or len(evidence.shared) < MIN_SEEDS:
        outcome, why = "not shown", f"{len(evidence.shared)} seeds in common, {MIN_SEEDS} are the least"
    elif math.exp(found.estimate) > 1.0 - MIN_TIME_GAIN:
        outcome, why = "fail", f"{-math.expm1(found.estimate):.1%} less time, {MIN_TIME_GAIN:.0%} are needed"
    elif any(c.outcome != "pass" for c in quality):
        outcome, why = "fail", "the quality is not matched"
    return Criterion(
        number="7.1.2", name="time at matched quality", outcome=outcome, figures=figures, why=why
    )


def _stability(evidence: Evidence) -> Criterion:
    """7.1.3: every run of the candidate finished, and no loss of any step is missing."""
    candidate = evidence.candidate
    missing = sum(loss is None for run in candidate.runs for loss in run.curves.losses)
    unfinished = len(candidate.runs) - len(candidate.finished)
    figures = {"runs": len(candidate.runs), "unfinished": unfinished, "losses_not_finite": missing}
    bad = unfinished or missing
    why = f"{unfinished} of {len(candidate.runs)} runs did not finish, {missing} losses are not finite"
    return _simple("7.1.3", "no instability", not bad, figures, why)


def _resume(evidence: Evidence) -> Criterion:
    """7.1.4: the records hold, those of resumed runs among them, whose event chain spans the resumption."""
    resumes = sum(run.timing.num_resumes for run in evidence.candidate.runs)
    problems = evidence.record_problems
    figures = {"resumes": resumes, "problems": len(problems)}
    return _simple("7.1.4", "no checkpoint regression", not problems, figures, "; ".join(problems[:3]))


def _loss_floor(evidence: Evidence) -> Criterion:
    """7.1.5: the smoothed final training loss is at most 1 % above the baseline's."""
    means = [
        [
            run.scores.final_train_loss_smoothed
            for run in series.finished.values()
            if run.scores.final_train_loss_smoothed is not None
        ]
        for series in (evidence.baseline, evidence.candidate)
    ]
    if not all(means):
        return _unshown("7.1.5", "training loss floor", "no final training loss")
    a, b = (statistics.fmean(values) for values in means)
    figures = {"baseline": a, "candidate": b, "rise": b / a - 1.0, "allowed": MAX_LOSS_RISE}
    return _simple(
        "7.1.5", "training loss floor", b <= a * (1 + MAX_LOSS_RISE), figures, f"{b / a - 1:+.2%} of the loss"
    )


def _bpbs(series: Series) -> list[float]:
    return [run.scores.val_bpb for run in series.finished.values() if run.scores.val_bpb is not None]


def _bpb_floor(evidence: Evidence) -> Criterion:
    """7.1.6: the median val_bpb is at most 0.005 above the baseline's."""
    values = [_bpbs(series) for series in (evidence.baseline, evidence.candidate)]
    if not all(values):
        return _unshown("7.1.6", "val_bpb floor", "nothing was evaluated")
    a, b = (statistics.median(each) for each in values)
    figures = {"baseline": a, "candidate": b, "rise": b - a, "allowed": MAX_BPB_RISE}
    return _simple("7.1.6", "val_bpb floor", b - a <= MAX_BPB_RISE, figures, f"val_bpb {b - a:+.4f}")


def _no_regression(evidence: Evidence) -> Criterion:
    """6.2: the 95 % bound of val_bpb is within 0.005, the loss curve's second half within 1 %."""
    arms = [_bpbs(series) for series in (evidence.baseline, evidence.candidate)]
    found = contrast((-1.0, 1.0), arms, evidence.score_prior) if all(arms) else None
    if found is None:
        return _unshown(
            "6.2", "no quality regression", "nothing tells how much one run differs from the next"
        )
    trail = [
        statistics.fmean(
            loss
            for run in s.finished.values()
            for _, loss in smoothed(run.curves.losses)[len(run.curves.losses) // 2 :]
        )
        for s in (evidence.baseline, evidence.candidate)
    ]
    rise = trail[1] / trail[0] - 1.0
    figures = {"bpb": found.estimate, "bpb_low": found.low, "bpb_high": found.high, "loss_curve_rise": rise}
    if found.low > MAX_BPB_RISE or rise > MAX_LOSS_RISE:
        why = f"val_bpb {found.estimate:+.4f}, the second half of the loss curve {rise:+.2%}"
        return _simple("6.2", "no quality regression", False, figures, why)
    if found.high > MAX_BPB_RISE:
        why = f"a rise of val_bpb up to {found.high:.4f} is not excluded, {MAX_BPB_RISE} is allowed"
        return Criterion(
            number="6.2", name="no quality regression", outcome="not shown", figures=figures, why=why
        )
    return _simple("6.2", "no quality regression", True, figures, "")


def _compile_path(evidence: Evidence) -> Criterion:
    """6.3: the candidate compiles where the baseline does, within the time the records allow."""
    compiled = [
        all(run.shape.compiled for run in series.runs) for series in (evidence.baseline, evidence.candidate)
    ]
    seconds = [
        statistics.median(run.timing.ledger.get("compile", 0.0) for run in series.runs)
        for series in (evidence.baseline, evidence.candidate)
    ]
    figures = {"baseline_compile_s": seconds[0], "candidate_compile_s": seconds[1]}
    why = "the candidate trains eagerly where the baseline compiles"
    return _simple("6.3", "compile path intact", compiled[1] or not compiled[0], figures, why)


def _generalisation(evidence: Evidence) -> Criterion:
    """6.4: the gain survives the miniseries of depths."""
    name, found = "miniseries", evidence.miniseries
    if found is None:
        return _unshown("6.4", name, "the miniseries of depths was not run")
    # A miniseries asks for gain at equal work: a candidate that is only faster shows none and does no harm.
    outcome: Outcome = "not shown" if found.verdict == "fail" and not found.harms else found.verdict
    return Criterion(
        number="6.4",
        name=name,
        outcome=outcome,
        figures=depth_figures(found),
        why="; ".join(found.reasons),
    )


def _rollback(evidence: Evidence) -> Iterator[Criterion]:
    """7.4: cross-depth regressions, complexity or behaviour that is hard to reason about take it back out."""
    resolved = [
        msgspec.convert(series.runs[0].identity.recipe_resolved, Recipe)
        for series in (evidence.baseline, evidence.candidate)
    ]
    figures = {"fields_changed": len(differences(*resolved)), "concerns": len(evidence.concerns)}
    yield _simple(
        "7.4", "no cause to roll back", not evidence.concerns, figures, "; ".join(evidence.concerns)
    )


def _simple(
    number: str,
    name: str,
    passed: bool,
    figures: Mapping[str, float | int | str | None],
    why: str,
) -> Criterion:
    outcome: Outcome = "pass" if passed else "fail"
    return Criterion(number=number, name=name, outcome=outcome, figures=figures, why="" if passed else why)


def _unshown(number: str, name: str, why: str) -> Criterion:
    return Criterion(number=number, name=name, outcome="not shown", figures={}, why=why)
