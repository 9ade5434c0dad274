"""The miniseries gate: whether a gain at some depths is one at all of them, and at the depth aimed at.

Imports no torch. A difference is the candidate's score less the baseline's, signed so that below 0 is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from bench.experiments.distributions import chi_squared_tail, t_cdf, t_quantile
from bench.experiments.statistics import (
    ALPHA,
    Difference,
    difference,
    holm,
    minimum_detectable_effect,
)

LEAST_DEPTHS = 3  # a line through two points leaves nothing that tells how well it fits
LEAST_SEEDS = 3
HARM_LEVEL = 0.05  # of all depths together
TREND_CONFIDENCE = 0.80
# Weights from fewer degrees of freedom make the pooled test false: at level 1 % three depths of three seeds
# passed 13.6 % of 8,000 null draws by the normal distribution, 3.1 % with Meier's correction.
OWN_SPREAD_DOF = 10.0
MDE_IN_ERRORS = 3.6  # an MDE is so many standard errors, so that the harm allowed is two of them
DEEP, DEEP_NEEDS = 22, 16  # a claim about d22 or deeper rests on d16 or deeper

Verdict = Literal["pass", "fail", "not shown"]


class DepthDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One depth: the paired difference, what it could show, and what both had to work with."""

    depth: int
    parameters: int  # scaling parameters
    num_seeds: int
    delta: float
    standard_error: float
    dof: float
    low: float  # of the 95 % interval
    high: float
    mde: float
    allowed: float  # harm up to here is not told from none
    p_harm: float  # one-sided, of delta > allowed
    flops_ratio: float
    time_ratio: float | None  # None: on machines of several kinds


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """The differences as a line over ln(parameters), weighted by their precision, at the depth aimed at."""

    depth: int
    parameters: int
    slope: float  # for each factor e of parameters
    predicted: float
    upper: float  # one-sided 80 % bound of a difference measured there as precisely as at the deepest depth


class DepthGate(msgspec.Struct, frozen=True, kw_only=True):
    """All depths' figures and the decision."""

    depths: tuple[DepthDifference, ...]
    spread: Literal["of each depth", "of all depths"] = "of each depth"
    p_harm_holm: tuple[float, ...] = ()  # by depth
    pooled: float | None = None
    pooled_error: float | None = None
    p_gain: float | None = None  # one-sided, of the pooled difference below 0
    trend: Trend | None = None
    cochran_q: float | None = None
    p_cochran: float | None = None
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    @property
    def harms(self) -> bool:
        """Whether the candidate is worse, at a depth or over all of them: more than a gain not shown."""
        at_a_depth = any(map(_is_harm, self.depths, self.p_harm_holm))
        return at_a_depth or (self.p_gain is not None and self.p_gain > 1.0 - ALPHA)


def depth_difference(
    found: Difference, *, depth: int, parameters: int, flops_ratio: float, time_ratio: float | None
) -> DepthDifference:
    """A depth's figures from the paired test of its runs."""
    mde = minimum_detectable_effect(found.sigma, found.counts)
    allowed = 2.0 * mde / MDE_IN_ERRORS
    error = found.standard_error
    return DepthDifference(
        depth=depth,
        parameters=parameters,
        num_seeds=min(found.counts),
        delta=found.estimate,
        standard_error=error,
        dof=found.dof,
        low=found.low,
        high=found.high,
        mde=mde,
        allowed=allowed,
        p_harm=t_cdf((allowed - found.estimate) / error, found.dof) if error else float(found.estimate <= 0),
        flops_ratio=flops_ratio,
        time_ratio=time_ratio,
    )


def common_spread(tests: Sequence[Difference]) -> list[Difference]:
    """The depths' tests by one variance, that of all their runs together.

    Of equal numbers of seeds the mean's error is right on average even where the depths' spreads differ.
    """
    dof = sum(test.dof for test in tests)
    variance = sum(test.dof * test.sigma**2 for test in tests) / dof
    return [
        difference(
            f"{test.test}, spread of all depths",
            test.estimate,
            math.sqrt(2.0 * variance / min(test.counts)),
            dof,
            sigma=math.sqrt(variance),
            counts=test.counts,
        )
        for test in tests
    ]


def gate_depths(
    depths: Sequence[DepthDifference],
    gaps: Sequence[str],
    target_depth: int,
    target_parameters: int,
    *,
    is_common: bool = False,
) -> DepthGate:
    """The gate on these depths.

    Args:
        gaps: why the runs do not make a miniseries: depths that lack runs, unequal budgets.
        target_depth: the depth that the claim is about.
        is_common: the depths' errors are of one variance.
    """
    ordered = tuple(sorted(depths, key=lambda d: d.depth))
    missing = [*gaps, *_too_little(ordered, target_depth)]
    if missing:
        return DepthGate(depths=ordered, verdict="not shown", reasons=tuple(missing))
    pooled, error, dof = pooled_difference(ordered, is_common)
    q = sum(((d.delta - pooled) / d.standard_error) ** 2 for d in ordered)
    made = DepthGate(
        depths=ordered,
        spread="of all depths" if is_common else "of each depth",
        p_harm_holm=tuple(holm([d.p_harm for d in ordered])),
        pooled=pooled,
        pooled_error=error,
        p_gain=t_cdf(pooled / error, dof),
        trend=trend_of(ordered, target_depth, target_parameters),
        cochran_q=q,
        p_cochran=chi_squared_tail(q, len(ordered) - 1),
        verdict="pass",
    )
    reasons = tuple(_objections(made))
    return msgspec.structs.replace(made, verdict="fail" if reasons else "pass", reasons=reasons)


def _too_little(depths: Sequence[DepthDifference], target_depth: int) -> list[str]:
    found = [f"d{d.depth} has {d.num_seeds} seeds in common, {LEAST_SEEDS} are the least" for d in depths]
    found = [said for said, d in zip(found, depths, strict=True) if d.num_seeds < LEAST_SEEDS]
    if len(depths) < LEAST_DEPTHS:
        found.append(f"{len(depths)} depths, {LEAST_DEPTHS} are the least")
    found += [f"d{d.depth}: every seed differs by the same" for d in depths if not d.standard_error]
    if target_depth >= DEEP and depths and depths[-1].depth < DEEP_NEEDS:
        found.append(f"a claim about d{target_depth} needs runs at d{DEEP_NEEDS} or deeper")
    return found


def pooled_difference(depths: Sequence[DepthDifference], is_common: bool) -> tuple[float, float, float]:
    """(inverse-variance mean, its standard error, degrees of freedom).

    Weights from own variances are themselves noisy, and the plain error 1/sqrt(sum w) is then too small: it
    is widened by Meier's factor 1 + 4 sum (w_i/W)(1 - w_i/W)/dof_i, on W^2 / sum(w_i^2/dof_i) degrees (Meier
    1953, Variance of a weighted mean).
    """
    weights = [d.standard_error**-2 for d in depths]
    total = sum(weights)
    mean = sum(w * d.delta for w, d in zip(weights, depths, strict=True)) / total
    if is_common:
        return mean, 1.0 / math.sqrt(total), depths[0].dof
    shares = [w / total for w in weights]
    noise = sum(share * (1.0 - share) / d.dof for share, d in zip(shares, depths, strict=True))
    dof = 1.0 / sum(share**2 / d.dof for share, d in zip(shares, depths, strict=True))
    return mean, math.sqrt((1.0 + 4.0 * noise) / total), dof


def trend_of(depths: Sequence[DepthDifference], target_depth: int, target_parameters: int) -> Trend:
    """Weighted least squares on ln(parameters); scatter beyond the runs' own widens the prediction."""
    weights = [d.standard_error**-2 for d in depths]
    xs, total = [math.log(d.parameters) for d in depths], sum(weights)
    middle = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    mean = sum(w * d.delta for w, d in zip(weights, depths, strict=True)) / total
    squares = sum(w * (x - middle) ** 2 for w, x in zip(weights, xs, strict=True))
    slope = sum(w * (x - middle) * d.delta for w, x, d in zip(weights, xs, depths, strict=True)) / squares
    dof = len(depths) - 2
    residual = sum(
        w * (d.delta - mean - slope * (x - middle)) ** 2 for w, x, d in zip(weights, xs, depths, strict=True)
    )
    reach = math.log(target_parameters) - middle
    variance = depths[-1].standard_error ** 2 + 1.0 / total + reach**2 / squares
    error = math.sqrt(max(residual / dof, 1.0) * variance)
    predicted = mean + slope * reach
    return Trend(
        depth=target_depth,
        parameters=target_parameters,
        slope=slope,
        predicted=predicted,
        upper=predicted + t_quantile(TREND_CONFIDENCE, dof) * error,
    )


def _is_harm(d: DepthDifference, p_holm: float) -> bool:
    return d.delta > d.allowed or p_holm < HARM_LEVEL


def _objections(made: DepthGate) -> list[str]:
    """What fails, each with its figure."""
    assert made.p_gain is not None
    assert made.trend is not None
    found = []
    for d, p in zip(made.depths, made.p_harm_holm, strict=True):
        if _is_harm(d, p):
            found.append(f"harm at d{d.depth}: {d.delta:+.5f}, {d.allowed:.5f} is allowed")
    if not made.p_gain < ALPHA:
        found.append(f"no gain over all depths: {made.pooled:+.5f}, p = {made.p_gain:.2g}, needs {ALPHA}")
    if made.trend.upper > 0.0:
        found.append(
            f"at d{made.trend.depth} up to {made.trend.upper:+.5f} is predicted ({TREND_CONFIDENCE:.0%})"
        )
    return found


def figures(made: DepthGate) -> dict[str, float | int | str | None]:
    """Every figure by a name, each depth's after its depth."""
    found: dict[str, float | int | str | None] = {"verdict": made.verdict, "depths": len(made.depths)}
    found["spread"] = made.spread
    for place, d in enumerate(made.depths):
        told = msgspec.structs.asdict(d)
        del told["depth"]
        found |= {f"d{d.depth}_{name}": value for name, value in told.items()}
        if made.p_harm_holm:
            found[f"d{d.depth}_p_harm_holm"] = made.p_harm_holm[place]
    if made.trend is not None:
        found |= {"pooled": made.pooled, "pooled_error": made.pooled_error, "p_gain": made.p_gain}
        found |= {"cochran_q": made.cochran_q, "p_cochran": made.p_cochran}
        found |= {f"trend_{name}": value for name, value in msgspec.structs.asdict(made.trend).items()}
    return found


def gate_text(made: DepthGate) -> str:
    """The gate for people: a line a depth, the pooled difference, the trend, the decision."""
    lines = ["  depth     params  seeds      delta  std error    allowed  p harm  FLOPs    time"]
    for place, d in enumerate(made.depths):
        p = f"{made.p_harm_holm[place]:.2g}" if made.p_harm_holm else ""
        time = f"{d.time_ratio:.3f}" if d.time_ratio is not None else "n/a"
        lines.append(
            f"  d{d.depth:<4} {d.parameters:>10,}  {d.num_seeds:>5} {d.delta:>+10.5f}"
            f" {d.standard_error:>10.5f} {d.allowed:>10.5f} {p:>7}  {d.flops_ratio:>5.3f}  {time:>6}"
        )
    if made.trend is not None:
        t = made.trend
        lines += [
            f"  pooled {made.pooled:+.5f} ± {made.pooled_error:.5f} (standard error), p = {made.p_gain:.2g}",
            f"  at d{t.depth}: {t.predicted:+.5f} by trend, up to {t.upper:+.5f} ({TREND_CONFIDENCE:.0%})",
            f"  depths differ: Cochran's Q = {made.cochran_q:.2f}, p = {made.p_cochran:.2g}",
        ]
    return "\n".join([*lines, f"  miniseries: {made.verdict}", *(f"    {why}" for why in made.reasons)])
