"""Axes of the board's plots: where a value stands, which ticks are marked, and how they read. SVG as text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from bench.board.markdown import plain

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 14, 46
NUM_TICKS = 5
MOST = 1e100  # what a record may claim beyond this has no place on a plot
CHARACTER_PX = 6.2  # of the 11 px sans-serif in which labels are set
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
    """A range of values laid over a range of pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def at(self, value: float) -> float:
        """Where a value stands, in pixels."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)


def text(value: str) -> str:
    """Text from anywhere as HTML or SVG text, or as an attribute's value: nothing in it is markup."""
    return html.escape(plain(value))


def spanning(values: Sequence[float], start_px: float, end_px: float) -> Axis:
    """An axis over all values, with a margin of 6 % on both sides."""
    low, high = max(min(values), -MOST), min(max(values), MOST)
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start_px, end_px)


def ticks(axis: Axis, count: int = NUM_TICKS) -> list[Tick]:
    """Round values within an axis, at steps of 1, 2 or 5 times a power of ten, with the digits they need."""
    raw = (axis.high - axis.low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [Tick(n * step, f"{n * step:,.{digits}f}".replace("-", "−")) for n in range(first, last + 1)]


def dates(axis: Axis, count: int = 6) -> list[Tick]:
    """Round moments within an axis of seconds since 1970, in UTC."""
    span = axis.high - axis.low
    step, form = next((one for one in CLOCK_STEPS if span / one[0] <= count), CLOCK_STEPS[-1])
    return [
        Tick(n * step, datetime.fromtimestamp(n * step, UTC).strftime(form))
        for n in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    ]


def drawing(title: str, body: Sequence[str], height: float = HEIGHT, width: float = WIDTH) -> str:
    """An SVG that scales with its column and tells its title to who cannot see it."""
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img">'
    return f"{opening}<title>{text(title)}</title>{''.join(body)}</svg>"


def frame(
    x: Axis, y: Axis, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_name: str, y_name: str
) -> list[str]:
    """Grid, tick labels and names of both axes."""
    parts = []
    for value, label in y_ticks:
        place = y.at(value)
        parts.append(f'<path class="grid" d="M{x.start_px:g} {place:.1f}H{x.end_px:g}"/>')
        parts.append(f'<text class="end" x="{x.start_px - 8:g}" y="{place + 4:.1f}">{text(label)}</text>')
    for value, label in x_ticks:
        place = x.at(value)
        parts.append(f'<path class="tick" d="M{place:.1f} {y.start_px:g}v5"/>')
        parts.append(f'<text class="mid" x="{place:.1f}" y="{y.start_px + 18:g}">{text(label)}</text>')
    parts.append(f'<path class="axis" d="M{x.start_px:g} {y.start_px:g}H{x.end_px:g}"/>')
    middle = (x.start_px + x.end_px) / 2
    parts.append(f'<text class="mid name" x="{middle:g}" y="{y.start_px + 36:g}">{text(x_name)}</text>')
    parts.append(
        f'<text class="mid name" transform="translate(12 {(y.start_px + y.end_px) / 2:g})rotate(-90)">'
        f"{text(y_name)}</text>"
    )
    return parts


def dot(x_px: float, y_px: float, title: str, kind: str = "dot") -> str:
    """A point that names itself under the pointer."""
    return (
        f'<circle class="{kind}" cx="{x_px:.1f}" cy="{y_px:.1f}" r="4"><title>{text(title)}</title></circle>'
    )


def bar(x_px: float, low_px: float, high_px: float) -> str:
    """An interval, upright."""
    return f'<path class="err" d="M{x_px:.1f} {low_px:.1f}V{high_px:.1f}"/>'


def label(x_px: float, y_px: float, name: str, most: int = 26) -> str:
    """A point's name beside it, cut, and on whichever side has room."""
    shown = plain(name)
    shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
    is_left = x_px + 8 + CHARACTER_PX * len(shown) > WIDTH - RIGHT
    side, at = ("end", x_px - 8) if is_left else ("start", x_px + 8)
    return f'<text class="{side}" x="{at:.1f}" y="{y_px - 6:.1f}">{text(shown)}</text>'
