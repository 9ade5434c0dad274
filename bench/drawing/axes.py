"""Axes of every plot: where a value stands, which ticks are marked, and how they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

NUM_TICKS = 5
MOST = 1e100  # what a record may claim beyond this has no place on a plot
# Steps of a time axis, in seconds, with the form of their labels.
CLOCK_STEPS = (
    *((minutes * 60, "%b %d %H:%M") for minutes in (1, 5, 15, 30, 60, 180, 360, 720)),
    *((days * 86400, "%Y-%m-%d") for days in (1, 2, 4, 7, 14, 30, 61, 122, 244, 365, 730, 1825, 3650)),
)


class Tick(NamedTuple):
    """A marked value and its label."""

    value: float
    label: str


class Axis(NamedTuple):
    """A range of values laid over a range of pixels; a logarithmic one holds values above 0 only."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands, in pixels."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start_px + (value - low) / (high - low) * (self.end_px - self.start_px)


def spanning(values: Sequence[float], start_px: float, end_px: float, *, is_log: bool = False) -> Axis:
    """An axis over all values, with a margin of 6 % on both sides."""
    low, high = max(min(values), -MOST), min(max(values), MOST)
    if is_log:
        margin = 10.0 ** (0.06 * math.log10(high / low) or 0.05)
        return Axis(low / margin, high * margin, start_px, end_px, True)
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start_px, end_px)


def ticks(axis: Axis, count: int = NUM_TICKS) -> list[Tick]:
    """Round values within an axis, at steps of 1, 2 or 5 times a power of ten, with the digits they need."""
    if axis.is_log and axis.high / axis.low > 4.0:
        return _log_ticks(axis, count)
    raw = (axis.high - axis.low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [Tick(n * step, f"{n * step:,.{digits}f}".replace("-", "−")) for n in range(first, last + 1)]


def _log_ticks(axis: Axis, count: int) -> list[Tick]:
    """1, 2 and 5 in each decade, or 1 alone where that is enough, or every so many decades."""
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    values: list[float] = []
    for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        values = [value for value in found if axis.low <= value <= axis.high]
        if len(values) <= count + 3:
            break
    stride = -(-len(values) // (count + 3))
    return [Tick(value, _short(value)) for value in values[::stride]]


def _short(value: float) -> str:
    """A power's label: plain where it is short, else as 2e12."""
    return f"{value:,.10g}" if 1e-3 < value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def dates(axis: Axis, count: int = 6) -> list[Tick]:
    """Round moments within an axis of seconds since 1970, in UTC."""
    span = axis.high - axis.low
    step, form = next((one for one in CLOCK_STEPS if span / one[0] <= count), CLOCK_STEPS[-1])
    return [
        Tick(n * step, datetime.fromtimestamp(n * step, UTC).strftime(form))
        for n in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    ]
