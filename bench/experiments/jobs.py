"""Runs side by side, each a job of its own: on this machine or on a Slurm cluster, through submitit.

One run at a time on this machine needs neither: it is a child of this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.errors import PlanRefused, RecipeError
from bench.experiments.runner import Place, SeedRun, run_seed
from bench.spec.recipe import Horizon
from bench.spec.track import NamedTrack, Track

POLL_S = 0.2
STOP_S = 20.0  # submitit's controller gives a cancelled run 1 s, then kills it
# submitit's own defaults are 2 minutes here and 5 on Slurm, and end a run without a word in its log.
TIMEOUT_MIN = 24 * 60
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "name")  # submitit's own names
ATTEMPTS = 2
DIED = -1  # a job that ended without an exit code: its machine went, or the scheduler took it

ExecutorName = Literal["local", "slurm"]


class Jobs(NamedTuple):
    """How runs are spread."""

    executor: ExecutorName = "local"
    num_at_once: int = 1
    slurm: Mapping[str, str | int | bool] = {}
    devices: Sequence[Sequence[int]] = ()  # those of each place here, where runs have GPUs of their own

    @property
    def is_inline(self) -> bool:
        """Whether runs are children of this process, one after another."""
        return self.executor == "local" and self.num_at_once == 1


INLINE = Jobs()


class Running(NamedTuple):
    """A run under way: its exit code once it has ended, and how to end it."""

    poll: Callable[[], int | None]
    cancel: Callable[[], None]


Start = Callable[[SeedRun], Running]


def time_decides(track: Track, horizons: Iterable[Horizon]) -> str:
    """Why the time of runs decides on this track, in words; "" where it does not."""
    if track.score.rank_by == "time_to_target":
        return "the track ranks by time"
    if any(horizon.seconds is not None for horizon in horizons):
        return "runs last so many seconds and are scored by what they reach"
    return ""


def require_room(jobs: Jobs, track: NamedTrack, timed_by: str) -> None:
    """Runs whose time is measured do not share a machine.

    Args:
        timed_by: why time decides, in words; "" where it does not.

    Raises:
        PlanRefused: they would.
    """
    if jobs.executor == "slurm" or jobs.is_inline or not timed_by:
        return
    if jobs.num_at_once > len(jobs.devices):
        fits = len(jobs.devices)
        why = f"there are devices for {fits}" if fits else "all on one device"
        raise PlanRefused(
            f"--jobs {jobs.num_at_once} on {track.name}: {timed_by}; they would slow each other, {why}",
            f"use --jobs {max(fits, 1)}, or --executor slurm",
        )


def places_of(visible: str | None, num_devices: int, num_each: int) -> list[list[int]]:
    """GPUs of each run that fits beside the others, by CUDA's numbers.

    Args:
        visible: CUDA_VISIBLE_DEVICES, if set.

    Raises:
        RecipeError: devices are named by what submitit cannot pass on.
    """
    words = [str(i) for i in range(num_devices)] if visible is None else visible.split(",")[:num_devices]
    if not all(word.strip().isdecimal() for word in words):
        raise RecipeError(
            f"CUDA_VISIBLE_DEVICES={visible}: jobs are given devices by number", "name them 0,1,2"
        )
    numbers = [int(word) for word in words]
    if len(numbers) < num_each:
        return [numbers] if numbers else []
    return [numbers[i : i + num_each] for i in range(0, len(numbers) - num_each + 1, num_each)]


def slurm_parameters(given: Sequence[str]) -> dict[str, str | int | bool]:
    """Parameters of Slurm from words of key=value.

    Raises:
        RecipeError: a word that is none.
    """
    found: dict[str, str | int | bool] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (equals and key.isidentifier() and value):
            raise RecipeError(f"--slurm {word}", "write --slurm key=value, such as partition=gpu")
        found[key] = int(value) if value.isdecimal() else value == "true" or value
    return found


def starter(jobs: Jobs, place: Place, folder: Path) -> Start:
    """What starts a run.

    Args:
        folder: of submitit's own logs.

    Raises:
        PlanRefused: there is no Slurm.
        RecipeError: a parameter that Slurm's executor does not know.
    """
    if jobs.is_inline:

        def start_here(run: SeedRun) -> Running:
            code = run_seed(run, place)
            return Running(lambda: code, lambda: None)

        return start_here
    executor = _executor(jobs, folder)
    elsewhere = place._replace(environment=None)  # the job's own: a scheduler sets its devices there
    loads = [0] * len(jobs.devices)

    def start(run: SeedRun) -> Running:
        slot = loads.index(min(loads)) if loads else None
        if slot is not None:
            loads[slot] += 1
            gpus = jobs.devices[slot]
            executor.update_parameters(gpus_per_node=len(gpus), visible_gpus=gpus)
        job = executor.submit(run_seed, run, elsewhere)

        def poll() -> int | None:
            code = _code(job)
            if code is not None and slot is not None:
                loads[slot] -= 1
            return code

        return Running(poll, lambda: _cancel(job))

    return start


def _executor(jobs: Jobs, folder: Path) -> Any:
    import submitit

    if jobs.executor == "local":
        local = submitit.LocalExecutor(folder / "%j")
        local.update_parameters(timeout_min=TIMEOUT_MIN)
        return local
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm")
    except RuntimeError as error:
        raise PlanRefused(f"--executor slurm: {error}", "run it where sbatch is, or leave it out") from error
    named = {key if key in SHARED else f"slurm_{key}": value for key, value in jobs.slurm.items()}
    try:
        executor.update_parameters(**({"timeout_min": TIMEOUT_MIN, "name": "bench"} | named))
    except (AssertionError, NameError, TypeError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise RecipeError(f"--slurm: {problem}", "keys are those of submitit, without slurm_") from error
    return executor


def _code(job: Any) -> int | None:
    if not job.done():
        return None
    failure = job.exception()
    return int(job.result()) if failure is None else DIED


def _cancel(job: Any) -> None:
    """End a job and wait until it has: its run holds a lock that the next one needs."""
    job.cancel(check=False)
    until = time.monotonic() + STOP_S
    while not job.done() and time.monotonic() < until:
        time.sleep(POLL_S)


def carry_out(
    runs: Iterator[SeedRun],
    start: Start,
    num_at_once: int,
    is_final: Callable[[SeedRun, int], bool],
    tell: Callable[[str], None],
) -> Generator[tuple[SeedRun, int], None, None]:
    """(run, exit code) as runs end; one whose code is not final is started once more.

    The next run is drawn when there is room for it, so `runs` may look at what has ended by then. Whatever
    ends this early, Ctrl-C among it, cancels what is under way.
    """
    running: list[tuple[SeedRun, Running, int]] = []
    try:
        while True:
            while len(running) < num_at_once and (run := next(runs, None)) is not None:
                tell(run.name)
                running.append((run, start(run), 1))
            if not running:
                return
            ended = [(entry, code) for entry in running if (code := entry[1].poll()) is not None]
            for entry, code in ended:
                running.remove(entry)
                run, _, attempt = entry
                if attempt < ATTEMPTS and not is_final(run, code):
                    tell(f"{run.name} again")
                    running.append((run, start(run), attempt + 1))
                else:
                    yield run, code
            if not ended:
                time.sleep(POLL_S)
    finally:
        for _, handle, _ in running:
            handle.cancel()
