"""Runs a sweep's cells by `bench run`, a process each; what is recorded already is not run again.

The records are the only state: a sweep that was cut off goes on where the records end, whoever ran it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from bench.errors import Interrupted
from bench.experiments.jobs import INLINE, Jobs, carry_out, require_room, starter, time_decides
from bench.experiments.runner import FINAL, Place, SeedRun
from bench.experiments.series import Series, all_series
from bench.experiments.sweep_plan import PlannedCell, SweepPlan, require
from bench.records.schema import Record
from bench.records.store import read_all
from bench.spec.workspace import Workspace

Outcome = Literal["ok", "diverged", "failed", "not run"]


class Job(NamedTuple):
    """One run that a sweep asks for."""

    cell: PlannedCell
    seed_index: int
    is_fresh: bool  # of the winner, on a seed that took no part in choosing it


class Done(NamedTuple):
    """A job and what became of it; `record` where there is one."""

    job: Job
    outcome: Outcome
    record: Record | None


def recorded(planned: SweepPlan, records: Sequence[Record]) -> dict[tuple[str, int], Record]:
    """(recipe hash, seed index) -> the first record of it, under the track as it is now."""
    found: dict[tuple[str, int], Record] = {}
    for record in sorted(records, key=lambda r: (r.created, r.events_sha256_tip)):
        if record.identity.track_sha256 == planned.track.sha256:
            key = (record.identity.recipe_sha256, record.identity.seed_index)
            found.setdefault(key, record)
    return found


def run_sweep(
    planned: SweepPlan, place: Place, tell: Callable[[str], None], jobs: Jobs = INLINE
) -> list[Done]:
    """Every cell on every seed, then the winner on fresh ones; all that came of it.

    Seeds are the outer loop, so that a sweep that is stopped has compared its cells on equal seeds.

    Raises:
        PlanRefused: before the first run.
        Interrupted: stopped from outside; what was recorded is kept.
    """
    require(planned)
    require_room(jobs, planned.track, timed_by(planned))
    sweep = planned.sweep
    runner = _Runner(planned, place, tell, jobs)
    done = runner.carry_out([Job(cell, seed, False) for seed in range(sweep.seeds) for cell in planned.cells])
    best = winner(planned, done)
    if best is not None:
        fresh = range(sweep.seeds, sweep.seeds + sweep.confirm_seeds)
        done += runner.carry_out([Job(best, seed, True) for seed in fresh])
    return done


def timed_by(planned: SweepPlan) -> str:
    """Why the time of a sweep's runs decides, in words; "" where it does not."""
    horizons = [cell.plan.recipe.horizon for cell in planned.cells]
    return time_decides(planned.track.track, horizons) or (
        "the sweep asks for the time to a target" if planned.sweep.target else ""
    )


class _Runner:
    """Carries out jobs under the sweep's stop rules."""

    def __init__(self, planned: SweepPlan, place: Place, tell: Callable[[str], None], jobs: Jobs) -> None:
        self.planned, self.place, self.tell, self.num_at_once = planned, place, tell, jobs.num_at_once
        self.start = starter(jobs, place, place.space.runs / "jobs" / planned.name)
        self.start_s = time.monotonic()
        self.num_failed = 0
        self.dropped: set[str] = set()

    def carry_out(self, jobs: Sequence[Job]) -> list[Done]:
        """What became of each job, from before or from a run now, in the jobs' order."""
        done: dict[tuple[str, int], Done] = {}
        by_run = {self._run_of(job): job for job in jobs}

        def is_final(run: SeedRun, code: int) -> bool:
            return code in FINAL or self._known(by_run[run]) is not None

        runs = self._to_run(by_run, done)
        with closing(carry_out(runs, self.start, self.num_at_once, is_final, self.tell)) as ended:
            for run, code in ended:
                if code == Interrupted.exit_code:
                    hint = "the same command goes on from what is recorded"
                    raise Interrupted("the sweep was interrupted", hint)
                job = by_run[run]
                done[_key(job)] = self._done(job, self._known(job))
        return [done[_key(job)] for job in jobs]

    def _run_of(self, job: Job) -> SeedRun:
        log = job.cell.path.with_name(f"{job.cell.cell.name}-{job.seed_index}.log")
        return SeedRun(job.cell.path, self.planned.track.name, job.seed_index, log)

    def _to_run(self, by_run: Mapping[SeedRun, Job], done: dict[tuple[str, int], Done]) -> Iterator[SeedRun]:
        """The runs that have no record and that no stop rule holds back; the others are done."""
        for run, job in by_run.items():
            known = self._known(job)
            if known is not None:
                done[_key(job)] = self._done(job, known)
            elif self._stopped(job):
                done[_key(job)] = Done(job, "not run", None)
            else:
                yield run

    def _known(self, job: Job) -> Record | None:
        return recorded(self.planned, self._records()).get((job.cell.recipe_sha256, job.seed_index))

    def _done(self, job: Job, record: Record | None) -> Done:
        if record is None:
            self.num_failed += 1
            return Done(job, "failed", None)
        if record.status == "diverged" and self.planned.sweep.stop.drop_diverged:
            self.dropped.add(job.cell.cell.name)
        return Done(job, record.status, record)

    def _records(self) -> list[Record]:
        folder = self.place.space.records
        return [stored.record for stored in read_all(folder)]

    def _stopped(self, job: Job) -> bool:
        stop = self.planned.sweep.stop
        spent_s = time.monotonic() - self.start_s
        return (
            job.cell.cell.name in self.dropped
            or self.num_failed >= stop.failures
            or (stop.seconds is not None and spent_s >= stop.seconds)
        )


def _key(job: Job) -> tuple[str, int]:
    return job.cell.cell.name, job.seed_index


def scores_of(planned: SweepPlan, done: Sequence[Done], cell: PlannedCell, *, fresh: bool) -> list[float]:
    """The metric of a cell's finished runs, of those that chose the winner or of the fresh ones."""
    found = []
    for each in done:
        if each.job.cell.cell.name == cell.cell.name and each.job.is_fresh == fresh and each.record:
            value = (
                each.record.scores.val_bpb if planned.sweep.metric == "val_bpb" else each.record.scores.core
            )
            found += [value] if value is not None and each.outcome == "ok" else []
    return found


def winner(planned: SweepPlan, done: Sequence[Done]) -> PlannedCell | None:
    """The cell with the best mean among those all of whose seeds finished."""
    sign = 1.0 if planned.sweep.better == "lower" else -1.0
    means = {
        cell.cell.name: sign * statistics.fmean(scores)
        for cell in planned.cells
        if len(scores := scores_of(planned, done, cell, fresh=False)) == planned.sweep.seeds
    }
    best = min(means, key=lambda name: (means[name], name), default=None)
    return next((cell for cell in planned.cells if cell.cell.name == best), None)


def series_of(done: Sequence[Done]) -> dict[str, Series]:
    """The series of each cell's recorded runs, by the cell's name."""
    return {series.recipe: series for series in all_series([each.record for each in done if each.record])}


def sweep_folder(space: Workspace, name: str) -> Path:
    """Where a sweep's outputs lie."""
    return space.root / "leaderboard" / "sweeps" / name
