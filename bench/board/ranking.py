"""Which rows differ, and the ranks that follow (reference: Welch 1947, Holm 1979, Smyth 2004).

A row's rank is the range of places its value may have: one more than the rows shown better, up to as many
as are not shown worse. Comparisons are two-sided t tests, and Holm's method holds the chance of one wrong
separation anywhere on the board to 5 %. With a calibration the variance is moderated by it: s0² on v0 degrees
of freedom and the rows' own s² on v make (v0 s0² + v s²) / (v0 + v) on v0 + v. That takes one spread for all;
a row whose own is too large for it, by an F test at 1 %, keeps its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bench.experiments.distributions import t_cdf, t_quantile
from bench.experiments.statistics import Prior, exceeds, minimum_detectable_effect
from bench.experiments.statistics import holm as adjusted

FAMILY_ERROR = 0.05
NORMAL_975 = 1.9599  # no t of less separates anything at 5 %, whatever its degrees of freedom


class Sample(NamedTuple):
    """What a row is ranked by, over its seeds: mean, squared deviations and their degrees of freedom."""

    mean: float
    num_seeds: int
    squares: float
    degrees: int


def sample_of(values: Sequence[float], is_calibration: bool = False) -> Sample:
    """A row's sample; the spread of a calibration's own runs counts in the calibration only."""
    mean = statistics.fmean(values)
    if is_calibration or len(values) < 2:
        return Sample(mean, len(values), 0.0, 0)
    return Sample(mean, len(values), math.fsum((v - mean) * (v - mean) for v in values), len(values) - 1)


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % half-width, None where nothing tells the spread."""

    mean: float
    half_width: float | None
    num_seeds: int


class Ranks(NamedTuple):
    """The best and the worst place of a row."""

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def has_own_spread(sample: Sample, prior: Prior | None) -> bool:
    """Whether a row scatters more than the calibration lets it."""
    return (
        prior is not None
        and sample.degrees > 0
        and exceeds(sample.squares / sample.degrees, sample.degrees, prior)
    )


def variance_of(samples: Sequence[Sample], prior: Prior | None) -> tuple[float, float]:
    """The variance that samples share, moderated by a prior, and its degrees; 0 of these: unknown."""
    degrees: float = sum(sample.degrees for sample in samples)
    squares = math.fsum(sample.squares for sample in samples)
    if prior is not None and not any(has_own_spread(sample, prior) for sample in samples):
        degrees, squares = degrees + prior.dof, squares + prior.dof * prior.sigma**2
    return (squares / degrees, degrees) if degrees else (0.0, 0)


def estimate(values: Sequence[float], prior: Prior | None = None, is_calibration: bool = False) -> Estimate:
    """Mean and the half-width of its 95 % interval by Student's t."""
    sample = sample_of(values, is_calibration and prior is not None)
    variance, degrees = variance_of([sample], prior)
    if not degrees:
        return Estimate(sample.mean, None, sample.num_seeds)
    return Estimate(
        sample.mean, t_quantile(0.975, degrees) * math.sqrt(variance / sample.num_seeds), sample.num_seeds
    )


def log_estimate(
    values: Sequence[float], prior: Prior | None = None, is_calibration: bool = False
) -> Estimate:
    """Geometric mean; the half-width is the interval's longer side, the upper one."""
    found = estimate([math.log(value) for value in values], prior, is_calibration)
    mean = math.exp(found.mean)
    width = None if found.half_width is None else mean * math.expm1(found.half_width)
    return Estimate(mean, width, found.num_seeds)


def minimum_detectable(sample: Sample, prior: Prior | None) -> float | None:
    """The least difference that a comparison of two rows like this one shows at 1 % with 90 % power."""
    variance, degrees = variance_of([sample], prior)
    counts = (sample.num_seeds, sample.num_seeds)
    return minimum_detectable_effect(math.sqrt(variance), counts) if degrees else None


def difference(a: Sample, b: Sample, prior: Prior | None) -> tuple[float, float]:
    """(t of mean(a) - mean(b), degrees of freedom): on one variance where a prior fits both, else Welch's."""
    gap = a.mean - b.mean
    if prior is not None and not has_own_spread(a, prior) and not has_own_spread(b, prior):
        variance, degrees = variance_of([a, b], prior)
        return _ratio(gap, variance * (1 / a.num_seeds + 1 / b.num_seeds)), degrees
    (variance_a, degrees_a), (variance_b, degrees_b) = (variance_of([one], prior) for one in (a, b))
    if not (degrees_a and degrees_b):
        return 0.0, 1.0  # one seed decides nothing
    error_a, error_b = variance_a / a.num_seeds, variance_b / b.num_seeds
    error = error_a + error_b
    if not error:
        return _ratio(gap, error), 1.0
    share_a, share_b = error_a / error, error_b / error  # of the whole, for squares of what is tiny are 0
    return _ratio(gap, error), 1.0 / (share_a**2 / degrees_a + share_b**2 / degrees_b)


def _ratio(gap: float, variance: float) -> float:
    if not gap:
        return 0.0
    return gap / math.sqrt(variance) if variance else math.copysign(math.inf, gap)


def p_value(t: float, degrees: float) -> float:
    """Two-sided; 1 where even the normal would not separate at 5 %, which spares most of the work."""
    if not abs(t) >= NORMAL_975 or math.isnan(degrees):  # figures beyond float64's range show nothing
        return 1.0
    return 0.0 if math.isinf(t) else 2.0 * t_cdf(-abs(t), degrees)


def holm(p_values: Sequence[float], family_error: float = FAMILY_ERROR) -> list[bool]:
    """Which hypotheses Holm's step-down method rejects."""
    return [p_value <= family_error for p_value in adjusted(p_values)]


def ranks_of(
    tables: Sequence[Sequence[Sample]], priors: Sequence[Prior | None], signs: Sequence[float]
) -> list[list[Ranks]]:
    """The ranks of every table's rows; all comparisons of all tables are one family.

    Args:
        priors: a table's calibration, if it has one.
        signs: of a table, 1.0 where less is better, -1.0 where more is.
    """
    pairs, tested = [], []
    for number, (samples, prior) in enumerate(zip(tables, priors, strict=True)):
        for i in range(len(samples)):
            for j in range(i):
                t, degrees = difference(samples[i], samples[j], prior)
                is_less = (t < 0) == (signs[number] > 0)
                pairs.append((number, *((i, j) if is_less else (j, i))))
                tested.append(p_value(t, degrees))
    best = [[1] * len(samples) for samples in tables]
    worst = [[len(samples)] * len(samples) for samples in tables]
    for (number, better, worse), is_shown in zip(pairs, holm(tested), strict=True):
        if is_shown:
            best[number][worse] += 1
            worst[number][better] -= 1
    return [[Ranks(*places) for places in zip(*both, strict=True)] for both in zip(best, worst, strict=True)]


def chance_less(a: Sample, b: Sample, prior: Prior | None) -> float:
    """P(a's true mean is below b's), from the t posterior under flat priors."""
    t, degrees = difference(a, b, prior)
    if math.isnan(t) or math.isnan(degrees):
        return 0.5
    return 0.0 if t == math.inf else 1.0 if t == -math.inf else t_cdf(-t, degrees)
