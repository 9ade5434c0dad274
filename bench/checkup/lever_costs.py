"""What a lever costs: pairs of steps, the ratio's median with its interval, and the limit it was set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from tabulate import tabulate

from kernels.bench_measure import Spread, spread_of

# Times its control's step, at most.
LIMITS = {
    "equilibration, Muon+, NorMuon, decay": 1.05,
    "bigram": 1.03,
    "qk-clip-weight": 1.02,
    "qk-clip-logit": 1.02,
    "z-loss": 1.01,
}
COVERAGE = 0.95


class LeverCost(msgspec.Struct, frozen=True, kw_only=True):
    """A lever's step and its control's, taken in turn in one process; peaks each of a fresh process."""

    name: str
    control: str
    num_pairs: int
    step_s: Spread
    control_step_s: Spread
    times_control: Spread  # pair by pair
    interval: tuple[float, float] | None  # of the median of those; None for too few pairs
    limit: float | None
    peak_bytes: int | None  # None where only a part of the step was timed
    control_peak_bytes: int | None

    @property
    def between(self) -> str:
        """The interval as it is printed."""
        return "-".join(f"{end:.3f}" for end in self.interval) if self.interval else "too few"

    @property
    def verdict(self) -> Literal["", "within", "over", "unresolved"]:
        """Whether the interval of the median lies below the limit, above, or on both sides."""
        if self.limit is None:
            return ""
        if self.interval is None or self.interval[0] <= self.limit < self.interval[1]:
            return "unresolved"
        return "within" if self.interval[1] <= self.limit else "over"


def cost_of(
    name: str,
    control: str,
    step_s: Sequence[float],
    control_step_s: Sequence[float],
    peak_bytes: int | None = None,
    control_peak_bytes: int | None = None,
) -> LeverCost:
    """The cost from the seconds of steps taken in turn."""
    ratios = [one / other for one, other in zip(step_s, control_step_s, strict=True)]
    return LeverCost(
        name=name,
        control=control,
        num_pairs=len(ratios),
        step_s=spread_of(list(step_s)),
        control_step_s=spread_of(list(control_step_s)),
        times_control=spread_of(ratios),
        interval=median_interval(ratios),
        limit=LIMITS.get(name),
        peak_bytes=peak_bytes,
        control_peak_bytes=control_peak_bytes,
    )


def median_interval(values: Sequence[float], coverage: float = COVERAGE) -> tuple[float, float] | None:
    """The narrowest symmetric pair of order statistics that covers the median; None for too few values.

    Whatever the distribution: the k-th least of n lies above the median where fewer than k values lie below,
    and how many do is binomial (n, 1/2).
    """
    n, ordered, outside, found = len(values), sorted(values), 0.0, None
    for k in range(n // 2):
        outside += 2.0 * math.comb(n, k) / 2.0**n
        if outside > 1.0 - coverage:
            break
        found = ordered[k], ordered[n - 1 - k]
    return found


def levers_table(costs: Sequence[LeverCost]) -> str:
    """Dearest first."""
    headers = ["lever", "against", "times", "95 % interval", "limit", "", "step (s)", "control (s)", "MiB"]
    rows = [
        [
            cost.name,
            cost.control,
            f"{cost.times_control.median:.3f}",
            cost.between,
            f"{cost.limit:.2f}" if cost.limit else "",
            cost.verdict,
            f"{cost.step_s.median:.3f}",
            f"{cost.control_step_s.median:.3f}",
            _more(cost),
        ]
        for cost in sorted(costs, key=lambda cost: -cost.times_control.median)
    ]
    alignment = ("left", "left", "right", "right", "right", "left", *("right",) * 3)
    return tabulate(rows, headers, disable_numparse=True, colalign=alignment)


def _more(cost: LeverCost) -> str:
    if cost.peak_bytes is None or cost.control_peak_bytes is None:
        return ""
    return f"{(cost.peak_bytes - cost.control_peak_bytes) / 2**20:+,.0f}"
