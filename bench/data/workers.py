"""Worker processes: the same results in the same order, however many there are."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from bench.errors import DataError

J = TypeVar("J")
R = TypeVar("R")


def map_in_order(function: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[R]:
    """Yields `function(job)` for each job, in order; in this process where one worker is enough.

    Processes are spawned, not forked: the caller may have threads (torch, rayon), and macOS spawns too.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            yield from pool.map(function, jobs)
        except BrokenProcessPool as error:
            message = "a worker process died (often: killed for lack of memory)"
            raise DataError(message, "run the command again with fewer workers: it continues") from error


def _die_with_parent() -> None:
    """Ends this worker when its parent is killed: an executor's worker would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
