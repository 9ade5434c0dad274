"""`bench compare`: two recipes by their records, in figures, words and one picture. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from bench.errors import RecipeError
from bench.experiments.plots import Line, chart
from bench.experiments.series import Series, priors, two_series
from bench.experiments.statistics import (
    Difference,
    Prior,
    contrast,
    minimum_detectable_effect,
    paired,
    resolution,
    welch,
)
from bench.records.schema import Record
from bench.spec.track import Track

# Curves are averaged over this many steps: single steps scatter more than recipes differ.
SMOOTHING = 0.05


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One compared quantity: every test of it, and the verdict of the first."""

    name: str
    a: dict[str, float]  # by seed index
    b: dict[str, float]
    prior: Prior | None
    tests: tuple[Difference, ...]  # the first decides
    minimum_detectable_effect: float | None
    verdict: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two recipes on one track."""

    track: str
    a: str
    b: str
    shared_seeds: list[int]
    endpoints: tuple[Endpoint, ...]
    notes: list[str]


def compare(
    records: Sequence[Record], a: str, b: str, track: str | None = None, effect: float | None = None
) -> tuple[Comparison, Series, Series]:
    """Both recipes' series and what sets them apart.

    Args:
        effect: the difference of the score worth knowing; default: the one found.
    """
    one, other = two_series(records, a, b, track)
    for series in (one, other):
        if not series.finished:
            raise RecipeError(f"no finished run of {series.recipe} on {series.track}", "all of them diverged")
    shared = sorted(one.finished.keys() & other.finished.keys())
    score_prior, time_prior = priors(records, one, other)
    metric = next(iter(one.finished.values())).scores.metric
    endpoints = (
        _endpoint(metric, one.scores(), other.scores(), score_prior, effect),
        _endpoint("log time", one.log_times(), other.log_times(), time_prior, None),
    )
    made = Comparison(
        track=one.track, a=a, b=b, shared_seeds=shared, endpoints=endpoints, notes=_notes(one, other)
    )
    return made, one, other


def _endpoint(
    name: str, a: dict[int, float], b: dict[int, float], prior: Prior | None, effect: float | None
) -> Endpoint:
    """Paired where all seeds are shared, else on one spread where a prior tells of one, else Welch's."""
    arms = (list(a.values()), list(b.values()))
    shared = sorted(a.keys() & b.keys())
    in_pairs = paired([a[i] for i in shared], [b[i] for i in shared], prior)
    unpaired = contrast((-1.0, 1.0), arms, prior)
    apart = (unpaired, welch(*arms)) if prior else (welch(*arms), unpaired)
    order = (in_pairs, *apart) if a.keys() == b.keys() else (*apart, in_pairs)
    tests = tuple(test for test in order if test is not None)
    runs_a, runs_b = ({str(index): value for index, value in arm.items()} for arm in (a, b))
    if not tests:
        n = min(len(arm) for arm in arms)
        verdict = f"not resolvable with n = {n}: nothing tells how much one run differs from the next"
        return Endpoint(
            name=name,
            a=runs_a,
            b=runs_b,
            prior=prior,
            tests=(),
            minimum_detectable_effect=None,
            verdict=verdict,
        )
    mde = minimum_detectable_effect(tests[0].sigma, tests[0].counts, dof=tests[0].dof)
    verdict = resolution(tests[0], effect)
    return Endpoint(
        name=name,
        a=runs_a,
        b=runs_b,
        prior=prior,
        tests=tests,
        minimum_detectable_effect=mde,
        verdict=verdict,
    )


def _notes(one: Series, other: Series) -> list[str]:
    notes = [
        f"{series.num_diverged} of {len(series.runs)} runs of {series.recipe} diverged, not in the means"
        for series in (one, other)
        if series.num_diverged
    ]
    machines = {run.machine.facts.get("device_name", "?") for s in (one, other) for run in s.runs}
    if len(machines) > 1:
        notes.append(f"times are of {len(machines)} kinds of machine: {', '.join(sorted(machines))}")
    return notes


def comparison_text(found: Comparison, track: Track) -> str:
    """The comparison for people."""
    lines = [f"{found.b} against {found.a} on {found.track}; seeds in common: {_seeds(found.shared_seeds)}"]
    for endpoint in found.endpoints:
        is_time = endpoint.name == "log time"
        better = "lower" if is_time else track.score.better
        lines += ["", *_endpoint_lines(endpoint, found, better)]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _endpoint_lines(endpoint: Endpoint, found: Comparison, better: str) -> list[str]:
    is_time = endpoint.name == "log time"
    label = "official seconds" if is_time else endpoint.name
    lines = [f"{label} ({better} is better)"]
    for name, values in ((found.a, endpoint.a), (found.b, endpoint.b)):
        mean = sum(values.values()) / len(values)
        lines.append(f"  {name:<32} {math.exp(mean) if is_time else mean:.6g}  (n = {len(values)})")
    for test in endpoint.tests:
        lines.append(
            f"  {test.test:<20} {_shown(test.estimate, is_time)}"
            f"  95 % [{_shown(test.low, is_time)}, {_shown(test.high, is_time)}]"
            f"  p = {test.p_two_sided:.3g} on {test.dof:.3g} degrees"
        )
    if endpoint.prior:
        lines.append(f"  spread moderated by {endpoint.prior.source}: {endpoint.prior.sigma:.3g}")
    if endpoint.minimum_detectable_effect is not None:
        lines.append(f"  smallest effect shown with 90 % power: {endpoint.minimum_detectable_effect:.3g}")
    return [*lines, f"  {_verdict(endpoint, found, better)}"]


def _verdict(endpoint: Endpoint, found: Comparison, better: str) -> str:
    if not endpoint.tests or not endpoint.tests[0].is_resolved:
        return endpoint.verdict
    b_is_better = (endpoint.tests[0].estimate < 0.0) == (better == "lower")
    return f"{found.b if b_is_better else found.a} is better: {endpoint.verdict}"


def _shown(value: float, is_time: bool) -> str:
    return f"{math.expm1(value):+.2%}" if is_time else f"{value:+.5f}"


def _seeds(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"


def smoothed(losses: Sequence[float | None]) -> list[tuple[float, float]]:
    """(step, mean loss of the steps just before) with null left out; the window is a share of the run."""
    window = max(round(SMOOTHING * len(losses)), 1)
    points, kept = [], [(step, loss) for step, loss in enumerate(losses, 1) if loss is not None]
    for end in range(1, len(kept) + 1):
        recent = [loss for _, loss in kept[max(end - window, 0) : end]]
        points.append((float(kept[end - 1][0]), sum(recent) / len(recent)))
    return points


def loss_chart(one: Series, other: Series) -> str:
    """Both recipes' training losses, a line a run, as SVG."""
    lines = []
    for colour, series in enumerate((one, other)):
        for place, run in enumerate(series.runs):
            label = f"{series.recipe}, {len(series.runs)} runs" if place == 0 else ""
            lines.append(Line(label, smoothed(run.curves.losses), colour=colour))
    title = f"Training loss on {one.track}, mean of the last {SMOOTHING:.0%} of the steps"
    return chart(title, "step", "loss, nats a token", lines, log_x=True)
