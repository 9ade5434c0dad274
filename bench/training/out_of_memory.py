"""What the allocators raise, told with the plan's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.host.device import Device, is_out_of_memory, out_of_memory_error
from bench.spec.plan import Plan


@contextmanager
def memory_explained(device: Device, plan: Plan) -> Iterator[None]:
    """Turn memory running out inside into an OutOfMemory; every other exception passes.

    Raises:
        OutOfMemory: with what was requested, what the plan predicted, and the next smaller batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(
            error,
            device,
            device_sequences=plan.device_sequences,
            predicted_peak_bytes=plan.predicted_peak_bytes,
        ) from error
