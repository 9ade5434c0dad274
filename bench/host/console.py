"""What a person sees of a run: plain lines, one of them live on a terminal."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO


class Console:
    """Writes lines to a stream; `progress` overwrites one line on a terminal and is thinned elsewhere.

    Args:
        quiet: write nothing, as under --json.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, every_s: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = self._stream.isatty()
        self._every_s = every_s
        self._last_s = -math.inf
        self._width = 0

    def line(self, text: str) -> None:
        """One finished line."""
        if not self._quiet:
            self._clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def step(
        self, step: int, total: float, loss: float, *, bpb: float | None, tokens_per_s: float, left_s: float
    ) -> None:
        """The live line of training; `bpb` is the last evaluation's, if there was one."""
        score = "" if bpb is None else f"  bpb {bpb:.4f}"
        self.progress(
            f"step {step}/{total:.0f}  loss {loss:.4f}{score}  {tokens_per_s:,.0f} tok/s  "
            f"{duration(max(left_s, 0.0))} left",
            is_last=step >= total,
        )

    def progress(self, text: str, is_last: bool = False) -> None:
        """The live line; where there is no terminal, at most one line every few seconds, and the last."""
        if self._quiet:
            return
        if self._live:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
            if is_last:
                self._stream.write("\n")
                self._width = 0
        elif is_last or time.monotonic() - self._last_s >= self._every_s:
            self._last_s = time.monotonic()
            self._stream.write(text + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0


def duration(seconds: float) -> str:
    """`47 s`, `3 m 05 s`, `2 h 07 m`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"


def size(num_bytes: float) -> str:
    """`812 MiB`, `3.4 GiB`."""
    mebibytes = num_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"
