"""One run's folder under .runs: its lock, its event log, its checkpoints."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import DataError, PlanRefused


def folder_path(runs: Path, track: str, recipe: str, seed_index: int) -> Path:
    """Where a run's files lie."""
    return runs / track / recipe / str(seed_index)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A run's folder, made if absent, is this process's alone.

    Raises:
        PlanRefused: another process runs the same recipe, track and seed.
        DataError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}", "the runs folder must be writable") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise PlanRefused(
                f"{folder} is being run by process {holder}",
                "wait for it, or take another seed with --seed",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # releases the lock, as does any death of the process


def require_folder(folder: Path) -> None:
    """Make a folder and write to it.

    Raises:
        DataError: either is impossible.
    """
    trial = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}", "this folder must be writable") from error
