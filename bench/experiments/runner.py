"""Runs of `bench run` in processes of their own: a record's clock is that of one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from bench.errors import Diverged
from bench.spec.workspace import Workspace


class Place(NamedTuple):
    """Where runs take place: the checkout, its device, and the environment they inherit."""

    space: Workspace
    device: str | None
    environment: Mapping[str, str]
    tracker: str | None = None  # shows the runs too


def run_seed(recipe: Path, track: str, seed_index: int, place: Place, output: IO[bytes] | None = None) -> int:
    """One run, resumed if an earlier one was cut off; returns its exit code.

    Args:
        output: where its lines go; where this process's go, if None.
    """
    command = [sys.executable, "-m", "bench", "run", str(recipe), "--track", track]
    command += ["--seed", str(seed_index), "--data", str(place.space.data)]
    command += ["--resume"] if _was_cut_off(place.space.runs / track / recipe.stem / str(seed_index)) else []
    command += ["--tracker", place.tracker] if place.tracker else []
    command += ["--device", place.device] if place.device else []
    done = subprocess.run(
        command,
        cwd=place.space.root,
        env=dict(place.environment),
        stdout=output,
        stderr=output,
        check=False,
    )
    return done.returncode


def _was_cut_off(folder: Path) -> bool:
    """Whether a run's log stops short of its end; what a finished run left behind is none to resume."""
    log = folder / "events.jsonl"
    return log.is_file() and b'"run_stop"' not in log.read_bytes()


def run_seeds(recipe: Path, track: str, seed_indices: Iterable[int], place: Place) -> int:
    """Runs one after another; the first exit code that is neither 0 nor a divergence ends them.

    A divergence is recorded, and the other seeds say how common it is: its code is returned at the end.
    """
    worst = 0
    for index in seed_indices:
        code = run_seed(recipe, track, index, place)
        if code not in (0, Diverged.exit_code):
            return code
        worst = worst or code
    return worst
