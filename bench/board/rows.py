"""Rows of the board: the records of one recipe on one track over one text, reduced. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from bench.records.schema import Record
from bench.spec.track import NamedTrack

# 97.5 % quantiles of Student's t by degrees of freedom; beyond the table the normal's.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131),
)
NORMAL_975 = 1.960


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % half-width, None below two seeds."""

    mean: float
    half_width: float | None
    num_seeds: int


class Row(NamedTuple):
    """One line of a track's table."""

    recipe: str
    title: str
    recipe_sha256: str
    own_track: str
    corpus_sha256: str
    score: Estimate
    core_error: float | None  # CORE's standard error by its items: of the worst seed
    official_s: Estimate
    tokens_per_s: float
    cold_s: float
    peak_bytes: int
    mfu: float | None
    num_proofs: int  # fused kernels proved equal to their references on the run's device
    inert: list[str]  # levers that were on and did nothing in any run
    machine: str
    seeds: list[int]
    complete: bool  # every seed of the track, none diverged
    num_diverged: int
    warnings: list[str]
    num_unscored: int


def estimate(values: list[float]) -> Estimate:
    """Mean and the half-width of its 95 % interval by Student's t."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, count)
    t = T_975[count - 2] if count - 2 < len(T_975) else NORMAL_975
    return Estimate(mean, t * statistics.stdev(values) / math.sqrt(count), count)


def rows_of(track: NamedTrack, records: list[Record]) -> list[Row]:
    """The track's rows, best first, complete before provisional ones; the records' order does not matter."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.identity.track == track.name:
            key = (record.data.corpus_sha256, record.identity.recipe, record.identity.recipe_sha256)
            groups[key].append(record)
    rows = [row for group in groups.values() if (row := _row(track, group)) is not None]
    sign = 1.0 if track.track.score.better == "lower" else -1.0
    by_metric = track.track.score.rank_by == "metric"

    def place(row: Row) -> tuple[bool, float, str, str]:
        return (
            not row.complete,
            sign * row.score.mean if by_metric else row.official_s.mean,
            row.recipe,
            row.recipe_sha256,
        )

    return sorted(rows, key=place)


def only_diverged(track: NamedTrack, records: list[Record]) -> dict[str, int]:
    """Recipes none of whose runs finished, and how many runs they had."""
    here = [record for record in records if record.identity.track == track.name]
    finished = {record.identity.recipe for record in here if record.status == "ok"}
    lost = sorted(record.identity.recipe for record in here if record.identity.recipe not in finished)
    return {recipe: lost.count(recipe) for recipe in lost}


def first_runs(group: list[Record]) -> list[Record]:
    """The first run of every seed, by seed: repeating a seed until it comes out well changes no row."""
    by_seed: dict[int, Record] = {}
    for record in sorted(group, key=lambda record: (record.created, record.events_sha256_tip), reverse=True):
        by_seed[record.identity.seed_index] = record
    return [by_seed[seed_index] for seed_index in sorted(by_seed)]


def _row(track: NamedTrack, group: list[Record]) -> Row | None:
    runs = first_runs(group)
    finished = [record for record in runs if record.status == "ok" and record.scores.value is not None]
    if not finished:
        return None
    scores = [record.scores.value for record in finished if record.scores.value is not None]
    cores = [record.scores.core_score for record in finished]
    seeds = [record.identity.seed_index for record in finished]
    first = finished[0]
    mfus = [record.timing.mfu for record in finished if record.timing.mfu is not None]
    warnings = {warning for record in finished for warning in record.warnings}
    if len(group) > len(runs):
        warnings.add(f"{len(group) - len(runs)} run(s) repeated a seed; the first of each seed counts")
    return Row(
        recipe=first.identity.recipe,
        title=first.identity.recipe_title,
        recipe_sha256=first.identity.recipe_sha256,
        own_track=first.identity.own_track,
        corpus_sha256=first.data.corpus_sha256,
        score=estimate(scores),
        core_error=max((core.standard_error for core in cores if core is not None), default=None),
        official_s=estimate([record.timing.official_s for record in finished]),
        tokens_per_s=statistics.median(record.timing.tokens_per_s_median for record in finished),
        cold_s=max(record.timing.cold_s for record in finished),
        peak_bytes=max(record.memory.peak_bytes for record in finished),
        mfu=statistics.fmean(mfus) if mfus else None,
        num_proofs=min(len(record.proofs) for record in finished),
        inert=sorted(
            lever for lever in first.features if all(record.features.get(lever) == 0.0 for record in finished)
        ),
        machine=" / ".join(sorted({_machine(record) for record in finished})),
        seeds=seeds,
        complete=set(range(track.track.seeds.count)) <= set(seeds) and _reached(track, finished),
        num_diverged=sum(record.status == "diverged" for record in runs),
        warnings=sorted(warnings),
        num_unscored=sum(record.status == "ok" and record.scores.value is None for record in runs),
    )


def _reached(track: NamedTrack, finished: list[Record]) -> bool:
    """Whether every seed passes the track's target, where it has one."""
    score = track.track.score
    if not score.target:
        return True
    values = [record.scores.value for record in finished if record.scores.value is not None]
    return min(values) >= score.target if score.better == "higher" else max(values) <= score.target


def _machine(record: Record) -> str:
    facts = {
        "cpu_model": "?",
        "cpu_cores": "?",
        "device_count": "?",
        "device_name": "?",
    } | record.machine.facts
    if facts.get("device_kind") == "cpu":
        return f"{facts['cpu_model']}, {facts['cpu_cores']} cores"
    return f"{facts['device_count']}x {facts['device_name']}"
