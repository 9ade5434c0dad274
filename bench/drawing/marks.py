"""What plots are drawn of, as SVG text: a frame, dots, intervals, names. The page styles it by class."""

from __future__ import annotations

from collections.abc import Sequence

from bench.drawing.axes import Axis, Tick
from bench.drawing.words import plain, text

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 14, 46
CHARACTER_PX = 6.2  # of the 11 px sans-serif in which labels are set
WIDE_PX = 7.2  # where a name is all capitals and digits
LINE_PX = 12


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


def row_grid(x: Axis, bottom: float, x_ticks: Sequence[Tick], axis_at: float, top: float = TOP) -> str:
    """Grid and tick labels below rows, with the one line that they are read against."""
    marks = [
        f'<path class="grid" d="M{x.at(value):.1f} {top:g}V{bottom:g}"/>'
        f'<text class="mid" x="{x.at(value):.1f}" y="{bottom + 18:g}">{text(shown)}</text>'
        for value, shown in x_ticks
    ]
    return "".join([*marks, f'<path class="axis" d="M{x.at(axis_at):.1f} {top:g}V{bottom:g}"/>'])


def dot(x_px: float, y_px: float, title: str, kind: str = "dot", fill: str = "") -> str:
    """A point that names itself under the pointer; the page colours its kind unless `fill` does."""
    filled = f' fill="{fill}"' if fill else ""
    place = f'cx="{x_px:.1f}" cy="{y_px:.1f}" r="4"{filled}'
    return f'<circle class="{kind}" {place}><title>{text(title)}</title></circle>'


def upright(x_px: float, low_px: float, high_px: float) -> str:
    """An interval of y."""
    return f'<path class="err" d="M{x_px:.1f} {low_px:.1f}V{high_px:.1f}"/>'


def level(y_px: float, low_px: float, high_px: float) -> str:
    """An interval of x."""
    return f'<path class="err" d="M{low_px:.1f} {y_px:.1f}H{high_px:.1f}"/>'


def row_name(name: str, right_px: float, y_px: float) -> str:
    """A row's name, cut to the room left of its marks."""
    most = max(int((right_px - 8) / WIDE_PX), 2)
    shown = name if len(name) <= most else f"{name[: most - 1]}…"
    return f'<text class="end" x="{right_px - 8:g}" y="{y_px + 4:.1f}">{text(shown)}</text>'


def labels(points: Sequence[tuple[float, float, str]], most: int = 26) -> list[str]:
    """Points' names beside them, cut, each on whichever side has room, the most telling first.

    A name that would lie over an earlier one is left out: its dot still says it under the pointer.
    """
    drawn: list[str] = []
    taken: list[tuple[float, float, float]] = []  # baseline, left and right end of each name
    for x_px, y_px, name in points:
        shown = plain(name)
        shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
        width = CHARACTER_PX * len(shown)
        is_left = x_px + 8 + width > WIDTH - RIGHT
        side, at = ("end", x_px - 8) if is_left else ("start", x_px + 8)
        start = at - width if is_left else at
        if any(
            abs(y - y_px) < LINE_PX and start < right and left < start + width for y, left, right in taken
        ):
            continue
        taken.append((y_px, start, start + width))
        drawn.append(f'<text class="{side}" x="{at:.1f}" y="{y_px - 6:.1f}">{text(shown)}</text>')
    return drawn
