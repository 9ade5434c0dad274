"""Charts as SVG text: points and lines on linear or logarithmic axes, readable in a browser and in a diff."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 56
NUM_TICKS = 6
# Okabe and Ito's colours, told apart by the colour-blind as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")


class Line(NamedTuple):
    """One named series; points that are not finite are left out. `is_dotted` draws marks without a line."""

    label: str
    points: Sequence[tuple[float, float]]
    is_dotted: bool = False
    colour: int | None = None  # default: the series' place


class Axis(NamedTuple):
    """One axis' range in drawn units, and where it lies on the page."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool

    def place(self, value: float) -> float:
        """Page coordinate of a value."""
        drawn = math.log10(value) if self.is_log else value
        return self.start + (drawn - self.low) / (self.high - self.low) * (self.stop - self.start)


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_x: bool = False) -> str:
    """The whole SVG document of a chart; equal input gives equal bytes."""
    kept = [
        line._replace(
            points=[p for p in line.points if all(map(math.isfinite, p)) and (p[0] > 0 or not log_x)]
        )
        for line in lines
    ]
    points = [point for line in kept for point in line.points]
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT, log_x)
    y = _axis([p[1] for p in points], HEIGHT - BOTTOM, TOP, False)
    body = [*_ticks(x, y), *_words(title, x_label, y_label)]
    for place, line in enumerate(kept):
        body += _drawn(line, COLOURS[(place if line.colour is None else line.colour) % len(COLOURS)], x, y)
    body += _legend(kept)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    head += 'font-family="sans-serif" font-size="12">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, background, *body, "</svg>", ""])


def _axis(values: list[float], start: float, stop: float, is_log: bool) -> Axis:
    drawn = [math.log10(value) if is_log else value for value in values] or [0.0, 1.0]
    low, high = min(drawn), max(drawn)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    return Axis(low - margin, high + margin, start, stop, is_log)


def tick_values(low: float, high: float) -> list[float]:
    """Round numbers within a range, about `NUM_TICKS` of them."""
    raw = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _ticks(x: Axis, y: Axis) -> list[str]:
    drawn = []
    for value in tick_values(x.low, x.high):
        shown = 10.0**value if x.is_log else value
        at = f"{x.place(shown):.1f}"
        drawn.append(f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        drawn.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{shown:.4g}</text>')
    for value in tick_values(y.low, y.high):
        at = f"{y.place(value):.1f}"
        drawn.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{value:.5g}</text>')
    return drawn


def _words(title: str, x_label: str, y_label: str) -> list[str]:
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{middle_x}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(16 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]


def _drawn(line: Line, colour: str, x: Axis, y: Axis) -> list[str]:
    places = [(x.place(px), y.place(py)) for px, py in line.points]
    if line.is_dotted:
        return [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>' for px, py in places]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'] if path else []


def _legend(lines: Sequence[Line]) -> list[str]:
    drawn, named = [], [(i, line) for i, line in enumerate(lines) if line.label]
    for row, (i, line) in enumerate(named):
        colour = COLOURS[(i if line.colour is None else line.colour) % len(COLOURS)]
        at = TOP + 14 + 16 * row
        drawn.append(f'<rect x="{WIDTH - 240}" y="{at - 8}" width="12" height="8" fill="{colour}"/>')
        drawn.append(f'<text x="{WIDTH - 222}" y="{at}">{escape(line.label)}</text>')
    return drawn
