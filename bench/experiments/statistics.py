"""What seeds can tell: differences with intervals, what n resolves, and corrections. Imports no torch.

Sources: Welch 1947 (unequal variances); Smyth 2004 (moderated variance); Holm 1979 (several comparisons).
Levels are one-sided: 0.01 to accept, 90 % power, so an effect is resolved from 3.608 standard errors on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from bench.experiments.distributions import f_tail, t_cdf, t_quantile

ALPHA = 0.01
UNLIKE = 0.01  # a spread that the others' would show this seldom is a recipe's own
POWER = 0.90
CONFIDENCE = 0.95
MAX_RUNS = 10_000  # more runs than this of one recipe nobody makes


class Prior(msgspec.Struct, frozen=True):
    """What a calibration knows of the run-to-run spread: its standard deviation and degrees of freedom."""

    sigma: float
    dof: float
    source: str = "calibration"


# 20 seeds of one d24 recipe (karpathy/nanochat pull 807): CORE 0.00625, val_bpb 2.3e-4; time 6.5 s of 4084.
PUBLISHED = {
    "core": Prior(0.00625, 19.0, "20 seeds of nanochat pull 807"),
    "val_bpb": Prior(2.3e-4, 19.0, "20 seeds of nanochat pull 807"),
    "log_time": Prior(0.0016, 19.0, "20 seeds of nanochat pull 807"),
}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A contrast of means, with what it rests on."""

    test: str
    estimate: float
    standard_error: float
    dof: float
    p_below: float  # small where the contrast is below 0
    p_above: float
    low: float  # of the 95 % interval
    high: float
    sigma: float  # of one run
    counts: tuple[int, ...]  # runs an arm
    correlation: float | None = None  # of paired runs

    @property
    def p_two_sided(self) -> float:
        """Twice the smaller tail."""
        return min(2.0 * min(self.p_below, self.p_above), 1.0)

    @property
    def is_resolved(self) -> bool:
        """Whether one side is excluded at `ALPHA`."""
        return min(self.p_below, self.p_above) < ALPHA


def difference(test: str, estimate: float, standard_error: float, dof: float, **others: object) -> Difference:
    """The contrast with its tails and interval; without spread it is resolved unless it is exactly 0."""
    if standard_error > 0.0:
        t = estimate / standard_error
    else:
        t = math.copysign(math.inf, estimate) if estimate else 0.0
    half = t_quantile(0.5 + CONFIDENCE / 2.0, dof) * standard_error
    facts = {
        "test": test,
        "estimate": estimate,
        "standard_error": standard_error,
        "dof": dof,
        "p_below": t_cdf(t, dof),
        "p_above": t_cdf(-t, dof),
        "low": estimate - half,
        "high": estimate + half,
    }
    return msgspec.convert(facts | others, Difference)


def pooled_variance(arms: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(variance, degrees of freedom) of one run, from the scatter within arms; (0, 0) from single runs."""
    dof = sum(len(arm) - 1 for arm in arms)
    squares = sum(statistics.variance(arm) * (len(arm) - 1) for arm in arms if len(arm) > 1)
    return (squares / dof if dof else 0.0), float(dof)


def moderated(variance: float, dof: float, prior: Prior | None) -> tuple[float, float]:
    """(variance, degrees of freedom) with the prior's: (dof0 sigma0^2 + dof s^2) / (dof0 + dof)."""
    if prior is None:
        return variance, dof
    total = prior.dof + dof
    return (prior.dof * prior.sigma**2 + dof * variance) / total, total


def exceeds(variance: float, dof: float, prior: Prior, level: float = UNLIKE) -> bool:
    """Whether runs like the prior's would show a spread of this size more seldom than `level`: an F test."""
    if not (variance and dof):
        return False
    return f_tail(variance / prior.sigma**2 if prior.sigma else math.inf, dof, prior.dof) < level


def alike(arms: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The arms that may share one spread: the narrower half, and on up to the first that exceeds all before.

    At a level of its own, since wide ones are tested against narrower ones: of eight arms of three runs that
    do share it, some are left out in 1 % of draws (of three 0.3, of sixteen 2 %; 3,000 draws each).
    """
    ordered = sorted((arm for arm in arms if len(arm) > 1), key=statistics.variance)
    for place in range(max(len(ordered) // 2, 1), len(ordered)):
        variance, dof = pooled_variance(ordered[:place])
        if exceeds(
            *pooled_variance(ordered[place : place + 1]), Prior(math.sqrt(variance), dof), UNLIKE / 10
        ):
            return ordered[:place]
    return ordered


def calibration(arms: Sequence[Sequence[float]], source: str) -> Prior | None:
    """The prior that other recipes' runs give, of those that are alike; None where none has two seeds."""
    variance, dof = pooled_variance(alike(arms))
    return Prior(math.sqrt(variance), dof, source) if dof and variance > 0.0 else None


def welch(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Mean of b less mean of a, variances unequal; None below two runs each."""
    if min(len(a), len(b)) < 2:
        return None
    shares = [statistics.variance(arm) / len(arm) for arm in (a, b)]
    total = sum(shares)
    parts = sum(share**2 / (len(arm) - 1) for share, arm in zip(shares, (a, b), strict=True))
    # Without any spread Welch's degrees of freedom are 0/0; the least they can be is the smaller arm's.
    dof = total**2 / parts if parts > 0.0 else min(len(a), len(b)) - 1.0
    sigma = math.sqrt(pooled_variance((a, b))[0])
    estimate = statistics.fmean(b) - statistics.fmean(a)
    return difference("Welch", estimate, math.sqrt(total), dof, sigma=sigma, counts=(len(a), len(b)))


def contrast(
    weights: Sequence[float], arms: Sequence[Sequence[float]], prior: Prior | None = None
) -> Difference | None:
    """Sum of weights x means under one moderated variance; None where nothing tells the spread.

    (-1, 1) compares two recipes; (1, -1, -1, 1) is the interaction of a 2x2.
    """
    variance, dof = moderated(*pooled_variance(arms), prior)
    if dof <= 0.0 or not all(arms):
        return None
    estimate = sum(weight * statistics.fmean(arm) for weight, arm in zip(weights, arms, strict=True))
    scale = math.sqrt(sum(weight**2 / len(arm) for weight, arm in zip(weights, arms, strict=True)))
    sigma = math.sqrt(variance)
    name = "moderated t" if prior else "pooled t"
    counts = tuple(len(arm) for arm in arms)
    return difference(name, estimate, sigma * scale, dof, sigma=sigma, counts=counts)


def paired(a: Sequence[float], b: Sequence[float], prior: Prior | None = None) -> Difference | None:
    """Mean of b - a over runs that share a seed; None where nothing tells the spread.

    The prior of a difference is 2 sigma0^2, as if seeds had nothing in common: pairing then never claims
    more than the runs show.
    """
    differences = [y - x for x, y in zip(a, b, strict=True)]
    variance, dof = pooled_variance((differences,)) if differences else (0.0, 0.0)
    double = Prior(math.sqrt(2.0) * prior.sigma, prior.dof, prior.source) if prior else None
    variance, dof = moderated(variance, dof, double)
    if dof <= 0.0 or not differences:
        return None
    return difference(
        "paired moderated t" if prior else "paired t",
        statistics.fmean(differences),
        math.sqrt(variance / len(differences)),
        dof,
        sigma=math.sqrt(variance / 2.0),
        counts=(len(differences), len(differences)),
        correlation=correlation(a, b),
    )


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's, or None below three pairs or without spread."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


def minimum_detectable_effect(
    sigma: float,
    counts: Sequence[int],
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    dof: float = math.inf,
    weights: Sequence[float] | None = None,
) -> float:
    """(t_{1-alpha} + t_{power}) sigma sqrt(sum w^2/n): seen with this power; weights default to +-1."""
    scale = math.sqrt(sum(w**2 / n for w, n in zip(weights or [1.0] * len(counts), counts, strict=True)))
    return (t_quantile(1.0 - alpha, dof) + t_quantile(power, dof)) * sigma * scale


def runs_needed(
    effect: float,
    sigma: float,
    *,
    num_arms: int = 2,
    alpha: float = ALPHA,
    power: float = POWER,
    prior_dof: float = math.inf,
) -> int | None:
    """Runs an arm that resolve `effect`; None above `MAX_RUNS`. `prior_dof` inf takes sigma as known."""
    if effect <= 0.0:
        return None
    at_least = minimum_detectable_effect(sigma, (1,) * num_arms, alpha=alpha, power=power) / effect
    if at_least**2 > MAX_RUNS:
        return None
    for n in range(max(math.ceil(at_least**2 - 1e-9), 1), MAX_RUNS + 1):
        dof = prior_dof + num_arms * (n - 1)
        counts = (n,) * num_arms
        if dof > 0 and (
            minimum_detectable_effect(sigma, counts, alpha=alpha, power=power, dof=dof) <= effect * (1 + 1e-9)
        ):
            return n
    return None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: family-wise error at any level is held."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        adjusted[i] = largest
    return adjusted


def resolution(found: Difference, effect: float | None = None) -> str:
    """In words, whether the runs resolve the contrast, and how many would.

    Args:
        effect: the difference worth knowing; default: the one found.
    """
    n = min(found.counts)
    if found.is_resolved:
        return f"resolved with n = {n} (p = {min(found.p_below, found.p_above):.2g})"
    wanted = abs(found.estimate) if effect is None else effect
    needed = runs_needed(wanted, found.sigma, num_arms=len(found.counts))
    if needed is None:
        return f"not resolvable: the means differ by nothing that {MAX_RUNS:,} runs would show"
    if needed <= n:
        seen = minimum_detectable_effect(found.sigma, found.counts)
        return f"not resolved with n = {n}, which would have shown {seen:.2g} with {POWER:.0%} power"
    return f"not resolvable with n = {n}; n = {needed} would resolve {wanted:.2g}"
