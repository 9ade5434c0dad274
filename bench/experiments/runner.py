"""Runs of `bench run` in processes of their own: a record's clock is that of one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.errors import Diverged, Interrupted, PlanRefused, RecipeError
from bench.spec.workspace import Workspace

# Codes that a second try cannot change: the recipe, the plan, a divergence (recorded), a person's stop.
FINAL = (0, RecipeError.exit_code, PlanRefused.exit_code, Diverged.exit_code, Interrupted.exit_code)


class Place(NamedTuple):
    """Where runs take place: the checkout and its device.

    `environment` None is that of the process that starts the run, wherever a scheduler puts it.
    """

    space: Workspace
    device: str | None
    environment: Mapping[str, str] | None
    tracker: str | None = None  # shows the runs too


class SeedRun(NamedTuple):
    """One run that is asked for, and where its lines and its JSON go; None: where this process's go."""

    recipe: Path
    track: str
    seed_index: int
    log: Path | None = None
    json: Path | None = None

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.recipe.stem}, seed {self.seed_index}"


def run_seed(run: SeedRun, place: Place) -> int:
    """One run, resumed if an earlier one was cut off; returns its exit code."""
    command = [sys.executable, "-m", "bench", "launch", str(run.recipe), "--track", run.track]
    command += ["--seed", str(run.seed_index), "--data", str(place.space.data)]
    folder = place.space.runs / run.track / run.recipe.stem / str(run.seed_index)
    command += ["--resume"] if _was_cut_off(folder) else []
    command += ["--device", place.device] if place.device else []
    command += ["--tracker", place.tracker] if place.tracker else []
    command += ["--json"] if run.json else []
    with ExitStack() as files:
        log = files.enter_context(run.log.open("ab")) if run.log else None
        out = files.enter_context(run.json.open("wb")) if run.json else log
        environment = None if place.environment is None else dict(place.environment)
        done = subprocess.run(
            command, cwd=place.space.root, env=environment, stdout=out, stderr=log, check=False
        )
    return done.returncode


def _was_cut_off(folder: Path) -> bool:
    """Whether a run's log stops short of its end; what a finished run left behind is none to resume."""
    log = folder / "events.jsonl"
    return log.is_file() and b'"run_stop"' not in log.read_bytes()
