"""How the kernel benchmark measures: time with cold caches, peak memory, and the rates that bound both.

Time is of the device: on CUDA between two events, with the queue filled before the first is reached, as in
training, where the host runs ahead; on the CPU by the clock on the wall.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

LEAST_FLUSH_BYTES = 64 * 2**20
# Cycles that a CUDA device waits while the host queues what is timed: some 2 ms, a thousand launches' worth.
HEAD_START_CYCLES = 4_000_000
RATE_ROUNDS = 7
# Sizes at which neither rate grows any more, by kind of device: bytes copied, rows of a square product.
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28, "mps": 2**28}
MATMUL_SIZE = {"cuda": 8192, "cpu": 2048, "mps": 4096}


class Spread(msgspec.Struct, frozen=True):
    """Median, least and greatest of repeated measurements."""

    median: float
    least: float
    greatest: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What the device was measured to do: bytes moved (read and written) and FLOPs by dtype, a second."""

    copy_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]


def spread_of(values: list[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16 and so on."""
    return str(dtype).removeprefix("torch.")


class Stopwatch:
    """Times calls on one device, each with none of its data in the last-level cache."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.zeros(
            max(2 * _cache_bytes(device), LEAST_FLUSH_BYTES), dtype=torch.uint8, device=device
        )

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._flush.add_(1)
        if self._device.type == "cuda":
            return self._events(run)
        self._synchronize()
        start = time.perf_counter()
        run()
        self._synchronize()
        return time.perf_counter() - start

    def interleaved(self, runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Spread]:
        """The spread of each over `rounds` rounds; every round begins with the next one."""
        names: list[str] = list(runs)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(rounds):
            turn = round_ % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(self.seconds(runs[name]))
        return {name: spread_of(values) for name, values in seconds.items()}

    def _events(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _synchronize(self) -> None:
        if self._device.type == "mps":
            torch.mps.synchronize()


def _cache_bytes(device: torch.device) -> int:
    """The last-level cache; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    name = "SC_LEVEL3_CACHE_SIZE"
    return max(os.sysconf(name), 0) if device.type == "cpu" and name in os.sysconf_names else 0


def measure_rates(stopwatch: Stopwatch, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Rates:
    """Best of a few copies and square products: what a floor may take for granted."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _best(stopwatch, partial(target.copy_, source))
    size = MATMUL_SIZE[device.type]
    flops_per_s = {}
    for dtype in dtypes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        multiplying = _best(stopwatch, partial(torch.mm, a, b, out=product))
        flops_per_s[dtype_name(dtype)] = 2 * size**3 / multiplying
    return Rates(copy_bytes_per_s=2 * COPY_BYTES[device.type] / copying, matmul_flops_per_s=flops_per_s)


def _best(stopwatch: Stopwatch, run: Callable[[], object]) -> float:
    run()
    return min(stopwatch.seconds(run) for _ in range(RATE_ROUNDS))


def extra_peak_bytes(device: torch.device, run: Callable[[], Any]) -> int | None:
    """The most memory in use during a call beyond what was in use before it; its results are part of it.

    On the CPU it is the process's, so call it in a fresh one: what others left in the heap would be used
    again unseen. None where neither allocator nor system tells.
    """
    run()  # what is kept for good: compiled code, library workspaces, threads
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident_peak(run) if device.type == "cpu" else None


def _resident_peak(run: Callable[[], Any]) -> int | None:
    try:
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
        before = _status_bytes("VmRSS")
        run()
        return max(_status_bytes("VmHWM") - before, 0)
    except OSError:  # no /proc, or one that may not be written
        return None


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
