"""Charts of experiments as SVG files: points and lines on linear or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from bench.drawing.axes import spanning, ticks
from bench.drawing.document import COLOURS, Key, document, key_rows
from bench.drawing.marks import BOTTOM, LEFT, frame

WIDTH, HEIGHT, RIGHT = 760, 440, 24


class Line(NamedTuple):
    """One named series; points that are not finite are left out. `is_dotted` draws marks without a line."""

    label: str
    points: Sequence[tuple[float, float]]
    is_dotted: bool = False
    colour: int | None = None  # default: the series' place
    is_stepped: bool = False  # holds each value up to the next point


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """The whole SVG file of a chart; equal input gives equal bytes."""
    kept = [line._replace(points=_drawable(line.points, log_x, log_y)) for line in lines]
    points = [point for line in kept for point in line.points] or [(1.0, 1.0), (2.0, 2.0)]
    colours = [
        COLOURS[(place if line.colour is None else line.colour) % len(COLOURS)]
        for place, line in enumerate(kept)
    ]
    named = [Key(line.label, c, line.is_dotted) for line, c in zip(kept, colours, strict=True) if line.label]
    key, top = key_rows(named, WIDTH - RIGHT, LEFT)
    x = spanning([p[0] for p in points], LEFT, WIDTH - RIGHT, is_log=log_x)
    y = spanning([p[1] for p in points], HEIGHT - BOTTOM, top, is_log=log_y)
    body = [*key, *frame(x, y, ticks(x, 7), ticks(y, 6), x_label, y_label)]
    for line, colour in zip(kept, colours, strict=True):
        places = [(x.at(px), y.at(py)) for px, py in line.points]
        body += _dots(places, colour) if line.is_dotted else _path(places, colour, line.is_stepped)
    return document(title, body, WIDTH, HEIGHT, LEFT)


def _drawable(points: Sequence[tuple[float, float]], log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]


def _dots(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    return [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]


def _path(places: Sequence[tuple[float, float]], colour: str, is_stepped: bool) -> list[str]:
    if is_stepped and places:
        corners = [(after[0], before[1]) for before, after in pairwise(places)]
        pairs = zip(places, [*corners, places[-1]], strict=True)
        places = [place for pair in pairs for place in pair]
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [f'<polyline class="line" points="{shown}" stroke="{colour}"/>'] if shown else []
