"""What ranks a series of runs over the seeds of its track, and when two are told apart. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from bench.records.schema import Record
from bench.spec.track import Track

# 97.5 % quantiles of Student's t by degrees of freedom, then the normal's.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL_975 = 1.960


class Sample(NamedTuple):
    """A series that every seed of its track belongs to: mean, squared standard error, runs."""

    recipe: str
    mean: float
    squared_error: float
    num_runs: int


def sample_of(series: Sequence[Record], track: Track) -> Sample | None:
    """The sample of a series; None unless each seed of the track has a run that can be ranked."""
    ranked = [
        (one.identity.seed_index, value) for one in series if (value := _ranked(one, track)) is not None
    ]
    if not set(range(track.seeds.count)) <= {seed for seed, _ in ranked}:
        return None
    values, num_runs = [value for _, value in ranked], len(ranked)
    mean = math.fsum(values) / num_runs
    squares = math.fsum((value - mean) * (value - mean) for value in values)
    return Sample(series[0].identity.recipe, mean, squares / max(num_runs - 1, 1) / num_runs, num_runs)


def _ranked(record: Record, track: Track) -> float | None:
    """What ranks a run: its score, or the log of its time, where noise is a ratio."""
    if record.status != "ok" or record.scores.value is None:
        return None
    if track.score.rank_by == "metric":
        return record.scores.value
    return math.log(record.timing.official_s) if record.timing.official_s > 0 else None


def told_apart(a: Sample, b: Sample) -> bool:
    """Whether the means differ by more than the 95 % half-width, at the smaller sample's freedom."""
    least = min(a.num_runs, b.num_runs)
    if least < 2:
        return False
    t = T_975[least - 2] if least - 2 < len(T_975) else NORMAL_975
    return abs(a.mean - b.mean) > t * math.sqrt(a.squared_error + b.squared_error)


def alike(samples: Sequence[Sample]) -> list[list[str]]:
    """For each sample the recipes of those that it is not told apart from, in order.

    By ascending mean, so that whoever is further off than any two of them are uncertain ends the search.
    """
    order = sorted(range(len(samples)), key=lambda at: samples[at].mean)
    widest = max((one.squared_error for one in samples), default=0.0)
    all_spread = all(one.num_runs > 1 for one in samples)  # a single run is told apart from nothing
    found: list[list[int]] = [[] for _ in samples]
    for place, at in enumerate(order):
        one = samples[at]
        farthest = T_975[0] * math.sqrt(one.squared_error + widest) if all_spread else math.inf
        for other in order[place + 1 :]:
            if samples[other].mean - one.mean > farthest:
                break
            if not told_apart(one, samples[other]):
                found[at].append(other)
                found[other].append(at)
    return [[samples[other].recipe for other in sorted(others)] for others in found]
