"""The ledger: every second of the process in exactly one category."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CATEGORIES = (
    "import",
    "data",
    "proof",
    "compile",
    "warmup",
    "train",
    "data_wait",
    "eval",
    "core",
    "checkpoint",
    "other",
)


def _nothing_to_wait_for() -> None:
    return


def process_age_s() -> float:
    """Seconds since the operating system started this process, to 5 ms on Linux and 1 us on macOS."""
    if sys.platform != "linux":
        return max(0.0, time.time() - psutil.Process().create_time())
    # psutil adds the start tick to `btime`, a whole second of the settable wall clock: measured on Linux 6.18
    # 2026-11-22 its create_time was 0.50 s off. proc(5) field 22 and CLOCK_BOOTTIME count from the same boot.
    after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    started_ticks = int(after_name.split()[19])
    booted_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return max(0.0, booted_s - (started_ticks + 0.5) * tick_s)  # the kernel rounds the start down to a tick


class Ledger:
    """Seconds by category, exclusive and summing to the process's wall-clock.

    The time before the ledger existed is `import`; the time in no span is `other`; an inner span pauses the
    outer one. `synchronize` is called before each reading of the clock, so that work still queued on the
    device is charged to the span that queued it; replace it once the device is open.
    Not thread-safe: one thread, the conductor's, owns the ledger.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        synchronize: Callable[[], None] = _nothing_to_wait_for,
        import_s: float = 0.0,
    ) -> None:
        self.synchronize = synchronize
        self._clock = clock
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._seconds["import"] = self._import_s = import_s
        self._open = ["other"]
        self._begun = self._mark = clock()
        self._is_closed = False

    @classmethod
    def start(cls) -> Ledger:
        """A ledger whose `import` holds everything from the start of the process until now."""
        return cls(import_s=process_age_s())

    @contextmanager
    def span(self, category: str, *, synchronized: bool = True) -> Iterator[None]:
        """Charge the time inside to `category`; an exception passing through closes the span as well.

        `synchronized=False` leaves the device running: for a wait of the host inside a step, whose device
        time belongs to the step.
        """
        assert category in CATEGORIES, f"no such ledger category: {category}"
        assert not self._is_closed, "the ledger is closed"
        self._charge(synchronized)
        self._open.append(category)
        try:
            yield
        finally:
            try:
                self._charge(synchronized)
            finally:
                self._open.pop()

    def running_total(self, *categories: str) -> float:
        """Seconds charged so far to these categories, the open span included; does not synchronise."""
        assert set(categories) <= set(CATEGORIES), f"no such ledger category among: {categories}"
        live_s = 0.0 if self._is_closed or self._open[-1] not in categories else self._clock() - self._mark
        return live_s + sum(self._seconds[category] for category in set(categories))

    def close(self) -> dict[str, float]:
        """Seconds of every category, and `wall_s`: from the process's start until now, by one clock."""
        assert not self._is_closed, "the ledger is closed"
        assert len(self._open) == 1, f"ledger closed inside span {self._open[-1]}"
        self._charge(True)
        self._is_closed = True
        return {**self._seconds, "wall_s": self._import_s + self._mark - self._begun}

    def _charge(self, synchronized: bool) -> None:
        try:
            if synchronized:
                self.synchronize()
        finally:  # a device that fails must not lose the time until it failed
            now = self._clock()
            self._seconds[self._open[-1]] += now - self._mark
            self._mark = now
