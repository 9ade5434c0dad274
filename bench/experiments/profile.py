"""Performance profiles: the share of problems a method solves within a factor of the best. Imports no torch.

Dolan and More 2002, Benchmarking optimization software with performance profiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.experiments.plots import Line, chart

MOST_RATIO = 4.0  # of the integral, as AlgoPerf has it: slower than this counts as never
DRAWN_RATIO = 2.0


class Problem(NamedTuple):
    """One problem and each method's seconds to solve it; None: not solved."""

    name: str
    seconds: Mapping[str, float | None]


def ratios(problems: Sequence[Problem]) -> dict[str, list[float]]:
    """Each method's time over the best one's, by problem; infinite where it does not solve it."""
    found: dict[str, list[float]] = {name: [] for problem in problems for name in problem.seconds}
    for problem in problems:
        best = min((s for s in problem.seconds.values() if s is not None), default=math.nan)
        for name, values in found.items():
            seconds = problem.seconds.get(name)
            values.append(math.inf if seconds is None else seconds / best)
    return found


def share_within(of_method: Sequence[float], factor: float) -> float:
    """rho(tau): the share of problems solved within `factor` of the best time."""
    return sum(ratio <= factor for ratio in of_method) / len(of_method)


def profile_score(of_method: Sequence[float], most: float = MOST_RATIO) -> float:
    """The mean of rho between 1 and `most`: 1 for the fastest on every problem."""
    return sum(max(most - ratio, 0.0) for ratio in of_method) / ((most - 1.0) * len(of_method))


def profile_chart(problems: Sequence[Problem], title: str, names: Mapping[str, str]) -> str:
    """The profile as an SVG file, a stepped line a method.

    Args:
        names: what the key calls each method.
    """
    lines = []
    for method, values in ratios(problems).items():
        corners = sorted({1.0, *(ratio for ratio in values if ratio < DRAWN_RATIO), DRAWN_RATIO})
        points = [(factor, 100.0 * share_within(values, factor)) for factor in corners]
        label = f"{names[method]}, mean to factor {MOST_RATIO:g}: {profile_score(values):.2f}"
        lines.append(Line(label, points, is_stepped=True))
    whole_range = [(1.0, 0.0), (1.0, 100.0)]  # shown whatever was reached
    lines.append(Line("", whole_range, colour=7))
    x_label = f"factor of the faster one's time to target, over {len(problems)} depths"
    return chart(title, x_label, "depths solved within it (%)", lines)
