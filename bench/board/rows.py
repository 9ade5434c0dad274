"""Rows of the board: the records of one recipe on one track over one text, reduced. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from bench.records.schema import Record
from bench.spec.track import NamedTrack

# 97.5 % quantiles of Student's t by degrees of freedom; beyond the table the normal's.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
NORMAL_975 = 1.960


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % half-width, None below two seeds."""

    mean: float
    half_width: float | None
    count: int


class Row(NamedTuple):
    """One line of a track's table."""

    recipe: str
    title: str
    recipe_sha256: str
    own_track: str
    corpus_sha256: str
    score: Estimate
    official_s: Estimate
    tokens_per_s: float
    cold_s: float
    peak_bytes: int
    mfu: float | None
    machine: str
    seeds: list[int]
    complete: bool  # every seed of the track, none diverged
    num_diverged: int
    warnings: list[str]
    records: list[Record]


def estimate(values: list[float]) -> Estimate:
    """Mean and the half-width of its 95 % interval by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, count)
    t = T_975[count - 2] if count - 2 < len(T_975) else NORMAL_975
    return Estimate(mean, t * statistics.stdev(values) / math.sqrt(count), count)


def rows_of(track: NamedTrack, records: list[Record]) -> list[Row]:
    """The track's rows, best first; complete rows before provisional ones."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.identity.track == track.name:
            key = (record.data.corpus_sha256, record.identity.recipe, record.identity.recipe_sha256)
            groups[key].append(record)
    rows = [row for group in groups.values() if (row := _row(track, group)) is not None]
    sign = 1.0 if track.track.score.better == "lower" else -1.0
    if track.track.score.rank_by == "metric":
        return sorted(rows, key=lambda row: (not row.complete, sign * row.score.mean, row.recipe))
    return sorted(rows, key=lambda row: (not row.complete, row.official_s.mean, row.recipe))


def _row(track: NamedTrack, group: list[Record]) -> Row | None:
    finished = [record for record in group if record.status == "ok" and record.scores.value is not None]
    if not finished:
        return None
    scores = [record.scores.value for record in finished if record.scores.value is not None]
    needed = set(range(track.track.seeds.count))
    seeds = sorted(record.identity.seed_index for record in finished)
    first = finished[0]
    return Row(
        recipe=first.identity.recipe,
        title=first.identity.recipe_title,
        recipe_sha256=first.identity.recipe_sha256,
        own_track=first.identity.own_track,
        corpus_sha256=first.data.corpus_sha256,
        score=estimate(scores),
        official_s=estimate([record.timing.official_s for record in finished]),
        tokens_per_s=statistics.median(record.timing.tokens_per_s_median for record in finished),
        cold_s=max(record.timing.cold_s for record in finished),
        peak_bytes=max(record.memory.peak_bytes for record in finished),
        mfu=statistics.fmean(mfus) if (mfus := [r.timing.mfu for r in finished if r.timing.mfu is not None]) else None,
        machine=_machine(first),
        seeds=seeds,
        complete=needed <= set(seeds) and _reached(track, finished),
        num_diverged=len(group) - len(finished),
        warnings=sorted({warning for record in finished for warning in record.warnings}),
        records=finished,
    )


def _reached(track: NamedTrack, finished: list[Record]) -> bool:
    """Whether the mean passes the track's target, where it has one."""
    score = track.track.score
    if not score.target:
        return True
    mean = statistics.fmean(record.scores.value or 0.0 for record in finished)
    return mean >= score.target if score.better == "higher" else mean <= score.target


def _machine(record: Record) -> str:
    facts = record.machine.facts
    if facts["device_kind"] == "cpu":
        return f"{facts['cpu_model']}, {facts['cpu_cores']} cores"
    return f"{facts['device_count']}x {facts['device_name']}"
