"""Python's cycle collector, kept out of the steps of a run that asks for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_by_hand(every_steps: int) -> Iterator[None]:
    """No automatic collection inside; what is alive at the start is never looked at. 0 changes nothing.

    A collection that starts by itself stops a step for as long as all objects of the process take to visit,
    half a second with a compiled model (nanochat's base_train, which does the same).
    """
    if not every_steps:
        yield
        return
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
