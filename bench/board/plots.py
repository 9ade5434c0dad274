"""A track's plots as SVG text: progress of its record, bits per byte against time, what levers change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from bench.board.ranking import Estimate
from bench.drawing.axes import Axis, dates, spanning, ticks
from bench.drawing.marks import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    dot,
    drawing,
    frame,
    labels,
    level,
    row_grid,
    row_name,
    upright,
)
from bench.drawing.words import text

MOST_LABELS = 12  # more names than these lie over each other
MOST_BARS = 24
BAR_PX = 26
NAMES_PX = 180


class Dated(NamedTuple):
    """A row's figure and when its last run was recorded (UTC, ISO 8601)."""

    name: str
    created: str
    figure: Estimate


class Placed(NamedTuple):
    """A row's time and bits per byte."""

    name: str
    seconds: Estimate
    bpb: Estimate


class Change(NamedTuple):
    """What a lever changes against its base, with its interval."""

    name: str
    delta: Estimate


def progress(points: Sequence[Dated], sign: float, figure_name: str) -> str:
    """The record by date; "" with fewer than two rows, or all of one moment.

    Args:
        sign: 1.0 where less is better, -1.0 where more is.
    """
    timed = sorted((at, one) for one in points if (at := _seconds(one.created)) is not None)
    if len({at for at, _ in timed}) < 2:
        return ""
    x = spanning([at for at, _ in timed], LEFT, WIDTH - RIGHT)
    y = spanning([end for _, one in timed for end in _ends(one.figure)], HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, dates(x), ticks(y), "date (UTC)", figure_name)
    best: list[tuple[float, Dated]] = []
    for at, one in timed:
        is_record = not best or sign * one.figure.mean < sign * best[-1][1].figure.mean
        if is_record:
            best.append((at, one))
        parts.append(_upright(x.at(at), y, one.figure))
        said = f"{one.name}: {_told(one.figure)}, {one.created}"
        parts.append(dot(x.at(at), y.at(one.figure.mean), said, "dot best" if is_record else "dot"))
    steps = [f"M{x.at(best[0][0]):.1f} {y.at(best[0][1].figure.mean):.1f}"]
    steps += [f"H{x.at(at):.1f}V{y.at(one.figure.mean):.1f}" for at, one in best[1:]]
    parts.append(f'<path class="line" d="{"".join(steps)}H{x.end_px:g}"/>')
    newest = best[: -MOST_LABELS - 1 : -1]
    parts += labels([(x.at(at), y.at(one.figure.mean), one.name) for at, one in newest])
    return drawing(f"Progress of the record: {figure_name} by date", parts)


def frontier(points: Sequence[Placed]) -> str:
    """Bits per byte against official time, rows that none beats in both joined; "" with fewer than two."""
    if len(points) < 2:
        return ""
    x = spanning([end for one in points for end in _ends(one.seconds)], LEFT, WIDTH - RIGHT)
    y = spanning([end for one in points for end in _ends(one.bpb)], HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, ticks(x), ticks(y), "official time (s)", "val_bpb")
    best = unbeaten(points)
    for one in points:
        across, up = x.at(one.seconds.mean), y.at(one.bpb.mean)
        left, right = (x.at(end) for end in _ends(one.seconds))
        if right > left:
            parts.append(level(up, left, right))
        parts.append(_upright(across, y, one.bpb))
        said = f"{one.name}: {_told(one.bpb)} bpb in {_told(one.seconds, 1)} s"
        parts.append(dot(across, up, said, "dot best" if one in best else "dot"))
    steps = "".join(
        f"H{x.at(after.seconds.mean):.1f}V{y.at(after.bpb.mean):.1f}" for _, after in pairwise(best)
    )
    start = f"M{x.at(best[0].seconds.mean):.1f} {y.at(best[0].bpb.mean):.1f}"
    parts.append(f'<path class="line" d="{start}{steps}"/>' if steps else "")
    named = points if len(points) <= MOST_LABELS else best[:MOST_LABELS]
    named = sorted(named, key=lambda one: (one not in best, one.bpb.mean, one.name))
    parts += labels([(x.at(one.seconds.mean), y.at(one.bpb.mean), one.name) for one in named])
    return drawing("val_bpb against official time; the line joins rows that none beats in both", parts)


def unbeaten(points: Sequence[Placed]) -> list[Placed]:
    """The rows that no other beats in time and bits per byte, by time."""
    found: list[Placed] = []
    for one in sorted(points, key=lambda one: (one.seconds.mean, one.bpb.mean, one.name)):
        if not found or one.bpb.mean < found[-1].bpb.mean:
            found.append(one)
    return found


def waterfall(base: str, changes: Sequence[Change], sign: float, figure_name: str) -> str:
    """What each lever changes against one base; "" with fewer than two, the largest of very many."""
    if len(changes) < 2:
        return ""
    kept = sorted(changes, key=lambda one: -abs(one.delta.mean))[:MOST_BARS]
    shown = sorted(kept, key=lambda one: (sign * one.delta.mean, one.name))
    bottom = TOP + BAR_PX * len(shown)
    x = spanning([0.0, *(end for one in shown for end in _ends(one.delta))], NAMES_PX, WIDTH - RIGHT)
    parts = [row_grid(x, bottom, ticks(x), 0.0)]
    for number, one in enumerate(shown):
        middle = TOP + BAR_PX * (number + 0.5)
        start, end = sorted((x.at(0.0), x.at(one.delta.mean)))
        is_told = one.delta.half_width is not None and abs(one.delta.mean) > one.delta.half_width
        kind = "untold" if not is_told else "good" if sign * one.delta.mean < 0 else "bad"
        low, high = (x.at(value) for value in _ends(one.delta))
        parts.append(row_name(one.name, NAMES_PX, middle))
        parts.append(
            f'<rect class="{kind}" x="{start:.1f}" y="{middle - 8:.1f}" width="{end - start:.1f}" '
            f'height="16">'
            f"<title>{text(f'{one.name}: {one.delta.mean:+.4f}{_spread(one.delta, 4)}')}</title></rect>"
        )
        if high > low:
            parts.append(level(middle, low, high))
    middle = (x.start_px + x.end_px) / 2
    said = f"change of {figure_name} against {base}"
    parts.append(f'<text class="mid name" x="{middle:g}" y="{bottom + 36}">{text(said)}</text>')
    return drawing(said, parts, bottom + BOTTOM)


def _seconds(created: str) -> float | None:
    """Seconds since 1970 of a record's date, or None of what is no date."""
    try:
        moment = datetime.fromisoformat(created)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _ends(figure: Estimate) -> tuple[float, float]:
    width = figure.half_width or 0.0
    return figure.mean - width, figure.mean + width


def _upright(x_px: float, y: Axis, figure: Estimate) -> str:
    low, high = _ends(figure)
    return upright(x_px, y.at(low), y.at(high)) if high > low else ""


def _told(figure: Estimate, digits: int = 4) -> str:
    return f"{figure.mean:.{digits}f}{_spread(figure, digits)}"


def _spread(figure: Estimate, digits: int) -> str:
    return "" if figure.half_width is None else f" ± {figure.half_width:.{digits}f}"
