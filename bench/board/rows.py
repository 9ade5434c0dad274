"""Rows of the board: the records of one recipe on one track over one text, reduced. Imports no torch."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.board.claims import RowKey, claims_of, is_unproven
from bench.board.ranking import (
    Estimate,
    Sample,
    estimate,
    log_estimate,
    minimum_detectable,
    sample_of,
)
from bench.board.states import NOTHING_KNOWN, Known, State, known_of, state_of
from bench.experiments.series import first_runs
from bench.experiments.statistics import Prior
from bench.records.equivalence import Equivalence
from bench.records.replayed import record_sha256
from bench.records.schema import Record
from bench.spec.track import NamedTrack

FIRST_NUMBER = re.compile(r"(?<![\w.])([0-9]{1,15}(?:\.[0-9]{1,15})?)(?![\w.])")
LEAST_S = 1e-9  # a time of zero, which no run takes and a record may claim, has no logarithm


class Row(NamedTuple):
    """One line of a track's table."""

    recipe: str
    title: str
    short: str  # what sets it apart from nanochat's defaults
    base: str  # the recipe it names as its base, or ""
    recipe_sha256: str
    own_track: str
    corpus_sha256: str
    state: State
    score: Estimate
    bpb: Estimate | None
    core: Estimate | None
    core_error: float | None  # CORE's standard error by its items: of the worst seed
    official_s: Estimate  # geometric mean; its interval only where the track ranks by it
    tokens_per_s: float
    cold_s: float
    peak_bytes: int
    mfu: float | None
    joules: float | None  # means, None where a seed has none
    dollars: float | None
    sample: Sample  # what it is ranked by: scores, or natural logs of official seconds
    mde: float | None  # of that
    num_proofs: int  # fused kernels proved equal to their references on the run's device
    inert: list[str]  # levers that were on and did nothing in any run
    machine: str
    software: str
    seeds: list[int]
    complete: bool  # every seed of the track, none diverged, and what it claims shown
    claim: Equivalence | None  # that it is systems-only, where it says so
    completed: str  # when the last of its runs was recorded
    num_diverged: int
    warnings: list[str]
    known: list[str]  # disputes and replays of its records, in words
    num_unscored: int
    records: list[Record]  # the runs that count, by seed
    hashes: list[str]


def rows_of(track: NamedTrack, records: list[Record], known: Known = NOTHING_KNOWN) -> list[Row]:
    """The track's rows, best first, complete before provisional ones; the records' order does not matter."""
    groups: dict[RowKey, list[Record]] = defaultdict(list)
    for record in records:
        if record.identity.track == track.name:
            key = (record.data.corpus_sha256, record.identity.recipe, record.identity.recipe_sha256)
            groups[key].append(record)
    claims = claims_of(track.track, groups)
    made = (_row(track, group, known, claims.get(key)) for key, group in groups.items())
    rows = [row for row in made if row is not None]
    sign = sign_of(track)

    def place(row: Row) -> tuple[bool, float, str, str]:
        return not is_ranked(row), sign * row.sample.mean, row.recipe, row.recipe_sha256

    return sorted(rows, key=place)


def sign_of(track: NamedTrack) -> float:
    """1.0 where less of what a track ranks by is better, -1.0 where more is."""
    score = track.track.score
    return -1.0 if score.rank_by == "metric" and score.better == "higher" else 1.0


def is_ranked(row: Row) -> bool:
    """Whether a row has a rank: a disputed one keeps it, for anybody may doubt; a retired one has none."""
    return row.complete and row.state != "retired"


def prior_of(track: NamedTrack, known: Known) -> Prior | None:
    """What the track's calibration, if it has one, knows of what the track ranks by."""
    calibration = known.calibrations.get(track.name)
    if calibration is None:
        return None
    return calibration.metric() if track.track.score.rank_by == "metric" else calibration.log_s()


def only_diverged(track: NamedTrack, records: list[Record]) -> dict[str, int]:
    """Recipes none of whose runs finished, and how many runs they had."""
    here = [record for record in records if record.identity.track == track.name]
    finished = {record.identity.recipe for record in here if record.status == "ok"}
    lost = sorted(record.identity.recipe for record in here if record.identity.recipe not in finished)
    return {recipe: lost.count(recipe) for recipe in lost}


class _Figures(NamedTuple):
    """What a row measures, and what its state follows from."""

    score: Estimate
    official_s: Estimate
    sample: Sample
    mde: float | None
    hashes: list[str]


def _figures(track: NamedTrack, finished: list[Record], known: Known) -> _Figures:
    calibration = known.calibrations.get(track.name)
    hashes = [record_sha256(record) for record in finished]
    is_own = calibration is not None and not set(calibration.records).isdisjoint(hashes)
    scores = [record.scores.value for record in finished if record.scores.value is not None]
    seconds = [max(record.timing.official_s, LEAST_S) for record in finished]
    by_metric = track.track.score.rank_by == "metric"
    prior = prior_of(track, known)
    # Rows that are ranked by their score need not have been run in turn, and then an hour of the machine is
    # part of every time: a spread over seeds would claim to tell rows apart that differ by nothing else.
    times = log_estimate(seconds, calibration.log_s() if calibration else None, is_own)
    sample = sample_of(scores if by_metric else [math.log(s) for s in seconds], is_own)
    return _Figures(
        score=estimate(scores, calibration.metric() if calibration else None, is_own),
        official_s=times if not by_metric else times._replace(half_width=None),
        sample=sample,
        mde=minimum_detectable(sample, prior),
        hashes=hashes,
    )


def _row(track: NamedTrack, group: list[Record], known: Known, claim: Equivalence | None) -> Row | None:
    runs = first_runs(group)
    finished = [record for record in runs if record.status == "ok" and record.scores.value is not None]
    if not finished:
        return None
    first, seeds = finished[0], [record.identity.seed_index for record in finished]
    figures = _figures(track, finished, known)
    complete = _is_whole(track, finished) and not is_unproven(claim)
    is_current = all(record.identity.track_sha256 == track.sha256 for record in finished)
    return Row(
        recipe=first.identity.recipe,
        title=first.identity.recipe_title,
        short=first.identity.recipe_short,
        base=str(first.identity.recipe_resolved.get("base") or ""),
        recipe_sha256=first.identity.recipe_sha256,
        own_track=first.identity.own_track,
        corpus_sha256=first.data.corpus_sha256,
        state=state_of(figures.hashes, complete, is_current, known),
        score=figures.score,
        bpb=_measured(finished, lambda record: record.scores.val_bpb),
        core=_measured(finished, lambda record: record.scores.core),
        core_error=max((one.standard_error for r in finished if (one := r.scores.core_score)), default=None),
        official_s=figures.official_s,
        tokens_per_s=statistics.median(record.timing.tokens_per_s_median for record in finished),
        cold_s=max(record.timing.cold_s for record in finished),
        peak_bytes=max(record.memory.peak_bytes for record in finished),
        mfu=_mean(finished, lambda record: record.timing.mfu),
        joules=_mean(finished, lambda record: record.energy.joules),
        dollars=_mean(finished, lambda record: record.energy.dollars),
        sample=figures.sample,
        mde=figures.mde,
        num_proofs=min(len(record.proofs) for record in finished),
        inert=sorted(
            lever for lever in first.features if all(record.features.get(lever) == 0.0 for record in finished)
        ),
        machine=" / ".join(sorted({_machine(record) for record in finished})),
        software=" / ".join(sorted({_software(record) for record in finished})),
        seeds=seeds,
        complete=complete,
        claim=claim,
        completed=max(record.created for record in finished),
        num_diverged=sum(record.status == "diverged" for record in runs),
        warnings=_warnings(finished, len(group) - len(runs)),
        known=known_of(figures.hashes, known),
        num_unscored=sum(record.status == "ok" and record.scores.value is None for record in runs),
        records=finished,
        hashes=figures.hashes,
    )


def _is_whole(track: NamedTrack, finished: list[Record]) -> bool:
    """Whether every seed finished, and passes the track's target where it has one."""
    score = track.track.score
    if not set(range(track.track.seeds.count)) <= {record.identity.seed_index for record in finished}:
        return False
    if not score.target:
        return True
    values = [record.scores.value for record in finished if record.scores.value is not None]
    return min(values) >= score.target if score.better == "higher" else max(values) <= score.target


def _values(finished: list[Record], field: Callable[[Record], float | None]) -> list[float] | None:
    values = [value for record in finished if (value := field(record)) is not None]
    return values if len(values) == len(finished) else None


def _mean(finished: list[Record], field: Callable[[Record], float | None]) -> float | None:
    values = _values(finished, field)
    return statistics.fmean(values) if values else None


def _measured(finished: list[Record], field: Callable[[Record], float | None]) -> Estimate | None:
    values = _values(finished, field)
    return estimate(values) if values else None


def _warnings(finished: list[Record], num_repeated: int) -> list[str]:
    warnings = _joined(warning for record in finished for warning in record.warnings)
    if num_repeated:
        warnings.append(f"{num_repeated} run(s) repeated a seed; the first of each seed counts")
    return sorted(warnings)


def _joined(warnings: Iterable[str]) -> list[str]:
    """Each once; those that differ in their first number as one, with the least and the greatest."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for warning in warnings:
        before, number, after = [*FIRST_NUMBER.split(warning, maxsplit=1), "", ""][:3]
        alike[before, after].append(number)
    joined = []
    for (before, after), numbers in alike.items():
        different = sorted(set(numbers), key=float) if all(numbers) else numbers[:1]
        several = f"{different[0]} to {different[-1]}" if len(different) > 1 else different[0]
        joined.append(f"{before}{several}{after}" + (f" ({len(numbers)} runs)" if len(different) > 1 else ""))
    return joined


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


def _software(record: Record) -> str:
    """The versions that move a figure, of those recorded."""
    facts = record.machine.facts
    versions = facts.get("versions")
    named = versions if isinstance(versions, dict) else {}
    told = [
        ("Python", facts.get("python_version")),
        *((name, named.get(name)) for name in ("torch", "triton")),
    ]
    told.append(("driver", facts.get("driver_version")))
    return ", ".join(f"{name} {version}" for name, version in told if version)
