"""Time to a target: measured, bracketed by two horizons, or extrapolated from three. Imports no torch.

Every horizon is a whole schedule of its own: a point inside a decaying schedule is no shorter run.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from bench.experiments.distributions import t_quantile
from bench.experiments.series import Series, all_series
from bench.experiments.statistics import CONFIDENCE, Prior, moderated, pooled_variance
from bench.records.schema import Record

MAX_REACH = 0.15  # of the nearest horizon's time
MAX_HALF_WIDTH = 0.03  # of the extrapolated time
NUM_RESAMPLES = 400


class HorizonRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one method at one horizon, a seed each."""

    tokens: int
    seconds: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def log_seconds(self) -> float:
        """Logarithm of the geometric mean of the times."""
        return statistics.fmean(map(math.log, self.seconds))

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.scores)


class TimeToTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds with their 95 % interval, and how they were come by; `why` says what stands in the way."""

    method: Literal["measured", "bracketed", "extrapolated", "none"]
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    bootstrap: tuple[float, float] | None = None  # the interval again, by resampling seeds
    why: str = ""


def time_to_target(
    horizons: Sequence[HorizonRuns], target: float, *, better: str = "lower", prior: Prior | None = None
) -> TimeToTarget:
    """The best-founded time there is; see `estimates`."""
    return estimates(horizons, target, better=better, prior=prior)[0]


def estimates(
    horizons: Sequence[HorizonRuns], target: float, *, better: str = "lower", prior: Prior | None = None
) -> tuple[TimeToTarget, ...]:
    """Measured before bracketed before extrapolated; a bracket stands beside a longer measured time.

    Args:
        prior: what a calibration knows of the scatter of scores.
    """
    sign = 1.0 if better == "lower" else -1.0
    ordered = sorted(
        (msgspec.structs.replace(h, scores=tuple(sign * score for score in h.scores)) for h in horizons),
        key=lambda h: h.tokens,
    )
    target *= sign
    passed = [h for h in ordered if all(score <= target for score in h.scores)]
    above = [h for h in ordered if h.score > target]
    below = [h for h in ordered if h.score <= target]
    found = [_measured(passed[0])] if passed else []
    if above and below and above[-1].tokens < below[0].tokens:
        found.append(_bracketed(above[-1], below[0], target, prior))
    return tuple(found) or (_extrapolated(ordered, target, prior),)


def _measured(horizon: HorizonRuns) -> TimeToTarget:
    """The geometric mean of the times of all runs, with its interval on ln t."""
    logs, n = [math.log(s) for s in horizon.seconds], len(horizon.seconds)
    mean = statistics.fmean(logs)
    if n < 2:
        return TimeToTarget(method="measured", seconds=math.exp(mean), why="one run has no interval")
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * statistics.stdev(logs) / math.sqrt(n)
    low, high = math.exp(mean - half), math.exp(mean + half)
    return TimeToTarget(method="measured", seconds=math.exp(mean), low=low, high=high)


def _variance(horizons: Sequence[HorizonRuns], prior: Prior | None) -> tuple[float, float]:
    """(variance of one run's score, its degrees of freedom)."""
    return moderated(*pooled_variance([h.scores for h in horizons]), prior)


def _bracket(one: HorizonRuns, other: HorizonRuns, target: float) -> float:
    """ln t where the score, linear in ln N between the two, meets the target; ln t is linear in ln N too."""
    share = (one.score - target) / (one.score - other.score)
    return one.log_seconds + share * (other.log_seconds - one.log_seconds)


def _bracketed(one: HorizonRuns, other: HorizonRuns, target: float, prior: Prior | None) -> TimeToTarget:
    log_t, (variance, dof) = _bracket(one, other, target), _variance((one, other), prior)
    if dof <= 0:
        return TimeToTarget(method="bracketed", seconds=math.exp(log_t), why="single runs have no interval")
    gap = one.score - other.score
    share = (one.score - target) / gap
    of_share = variance * ((1 - share) ** 2 / len(one.scores) + share**2 / len(other.scores)) / gap**2
    reach = other.log_seconds - one.log_seconds
    of_times, _ = pooled_variance([[math.log(s) for s in h.seconds] for h in (one, other)])
    of_times *= (1 - share) ** 2 / len(one.seconds) + share**2 / len(other.seconds)
    half = t_quantile(0.5 + CONFIDENCE / 2, dof) * math.sqrt(of_share * reach**2 + of_times)
    return TimeToTarget(
        method="bracketed",
        seconds=math.exp(log_t),
        low=math.exp(log_t - half),
        high=math.exp(log_t + half),
        bootstrap=_bootstrap((one, other), lambda pair: math.exp(_bracket(pair[0], pair[1], target))),
    )


def _line(horizons: Sequence[HorizonRuns]) -> tuple[float, float, float]:
    """(kappa = -dy/dt, variance of the residuals, sum of squares of t) of scores against seconds."""
    times, scores = [math.exp(h.log_seconds) for h in horizons], [h.score for h in horizons]
    fit = statistics.linear_regression(times, scores)
    residuals = [y - fit.intercept - fit.slope * t for t, y in zip(times, scores, strict=True)]
    squares = sum((t - statistics.fmean(times)) ** 2 for t in times)
    return -fit.slope, sum(r * r for r in residuals) / (len(times) - 2), squares


def _extrapolated(ordered: Sequence[HorizonRuns], target: float, prior: Prior | None) -> TimeToTarget:
    """t* = t + (y - target) / kappa from the nearest horizon; its variance has the slope's in it."""
    if len(ordered) < 3:
        return TimeToTarget(method="none", why=f"{len(ordered)} horizons, an extrapolation takes 3")
    nearest = min(ordered, key=lambda h: abs(h.score - target))
    kappa, residual, squares = _line(ordered)
    variance, dof = _variance(ordered, prior)
    if kappa <= 0.0 or dof <= 0:
        why = "longer runs are not better" if kappa <= 0.0 else "single runs do not tell their scatter"
        return TimeToTarget(method="none", why=why)
    start, n = math.exp(nearest.log_seconds), len(nearest.scores)
    seconds = start + (nearest.score - target) / kappa
    # The horizons' means lie off a line by their scatter and by the curve's bend, whichever is more.
    of_kappa = max(residual, variance / min(len(h.scores) for h in ordered)) / squares
    spread = math.sqrt(variance / (n * kappa**2) + (seconds - start) ** 2 * of_kappa / kappa**2)
    half = t_quantile(0.5 + CONFIDENCE / 2, dof) * spread
    reach = abs(seconds - start) / start
    if reach > MAX_REACH:
        return TimeToTarget(
            method="none", why=f"{reach:.0%} from the nearest horizon, at most {MAX_REACH:.0%} is allowed"
        )
    if half > MAX_HALF_WIDTH * seconds:
        return TimeToTarget(
            method="none", why=f"known to {half / seconds:.1%} only, {MAX_HALF_WIDTH:.0%} is allowed"
        )
    place = list(ordered).index(nearest)

    def again(drawn: Sequence[HorizonRuns]) -> float:
        slope = _line(drawn)[0]
        return (
            math.exp(drawn[place].log_seconds) + (drawn[place].score - target) / slope if slope else math.nan
        )

    return TimeToTarget(
        method="extrapolated",
        seconds=seconds,
        low=seconds - half,
        high=seconds + half,
        bootstrap=_bootstrap(ordered, again),
    )


def _bootstrap(
    horizons: Sequence[HorizonRuns], statistic: Callable[[Sequence[HorizonRuns]], float]
) -> tuple[float, float] | None:
    """95 % of the statistic over seeds drawn with replacement; None below three seeds of a horizon."""
    if min(len(h.scores) for h in horizons) < 3:
        return None
    draw, values = random.Random(0), []
    for _ in range(NUM_RESAMPLES):
        drawn = []
        for h in horizons:
            rows = draw.choices(list(zip(h.seconds, h.scores, strict=True)), k=len(h.scores))
            drawn.append(
                HorizonRuns(
                    tokens=h.tokens, seconds=tuple(r[0] for r in rows), scores=tuple(r[1] for r in rows)
                )
            )
        values.append(statistic(drawn))
    values = sorted(value for value in values if math.isfinite(value))
    return values[round(0.025 * (len(values) - 1))], values[round(0.975 * (len(values) - 1))]


def first_reached(record: Record, target: float, better: str = "lower") -> float | None:
    """Official seconds when a run's evaluation first reached the target, or None.

    Only bits per byte are evaluated on the way; any other score is known at the end of the run.
    """
    scores, sign = record.scores, 1.0 if better == "lower" else -1.0
    if scores.metric == "val_bpb":
        for step, bpb in zip(record.curves.bpb_steps, record.curves.bpbs, strict=True):
            if bpb is not None and sign * bpb <= sign * target:
                return seconds_at(record, step)
        return None
    reached = scores.value is not None and sign * scores.value <= sign * target
    return record.timing.official_s if reached else None


def seconds_at(record: Record, step: int) -> float:
    """Official seconds at the end of a step, linear between the logged ones."""
    steps = [0, *record.curves.logged_steps]
    seconds = [0.0, *record.curves.logged_seconds]
    if step >= steps[-1]:
        return record.timing.official_s
    place = next(i for i, logged in enumerate(steps) if logged >= step)
    if place == 0 or steps[place] == step:
        return seconds[place]
    share = (step - steps[place - 1]) / (steps[place] - steps[place - 1])
    return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])


def horizons_of(records: Sequence[Record], series: Series) -> list[HorizonRuns]:
    """The same method's runs at every horizon: recipes that differ from this one in [horizon] alone."""
    method = _without_horizon(series.runs[0])
    kin = [
        other
        for other in all_series(records)
        if (other.track, other.corpus_sha256) == (series.track, series.corpus_sha256)
        if other.finished and _without_horizon(other.runs[0]) == method
    ]
    by_tokens: dict[int, dict[str, Series]] = {}
    for other in kin:  # two names of one recipe are one method: its newest series counts
        by_tokens.setdefault(other.runs[0].shape.tokens, {})[other.recipe_sha256] = other
    return [
        HorizonRuns(
            tokens=tokens,
            seconds=tuple(
                run.timing.official_s for other in found.values() for run in other.finished.values()
            ),
            scores=tuple(score for other in found.values() for score in other.scores().values()),
        )
        for tokens, found in sorted(by_tokens.items())
    ]


def _without_horizon(record: Record) -> dict[str, object]:
    told = ("title", "notes", "links", "base", "track", "horizon")
    return {key: value for key, value in record.identity.recipe_resolved.items() if key not in told}
