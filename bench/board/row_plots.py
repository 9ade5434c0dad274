"""A row's plots as SVG text: where its seconds went, and its loss against official time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.drawing.axes import spanning, ticks
from bench.drawing.marks import BOTTOM, LEFT, RIGHT, TOP, WIDTH, drawing, frame
from bench.drawing.words import text
from bench.records.schema import Curves, Record

LOSS_HEIGHT = 220
LEDGER_HEIGHT = 26
MOST_POINTS = 40  # a line of 640 pixels shows no more, and the page stays small
LEAST_SHARE = 0.002
NUM_COLOURS = 6


def mean_ledger(records: Sequence[Record]) -> dict[str, float]:
    """Mean seconds of each category over a row's runs, in the ledger's order."""
    return {
        name: statistics.fmean(record.timing.ledger.get(name, 0.0) for record in records)
        for name in records[0].timing.ledger
    }


def ledger_bar(ledger: dict[str, float]) -> str:
    """One bar of the whole process; its official part, train and waiting for data, first."""
    total = math.fsum(ledger.values())
    if not total > 0:
        return ""
    parts, at = [], 0.0
    for kind, name, seconds in ledger_parts(ledger):
        width = WIDTH * seconds / total
        parts.append(
            f'<rect class="{kind}" x="{at:.1f}" width="{width:.1f}" height="{LEDGER_HEIGHT}">'
            f"<title>{text(f'{name} {seconds:.1f} s')}</title></rect>"
        )
        at += width
    return drawing(f"{total:.1f} s of the process by category", parts, LEDGER_HEIGHT)


def ledger_parts(ledger: dict[str, float]) -> list[tuple[str, str, float]]:
    """(class of its colour, category, seconds) of what can be seen, official time first, then the longest."""
    total = math.fsum(ledger.values())
    seen = [name for name, seconds in ledger.items() if seconds > LEAST_SHARE * total]
    official = [name for name in ("train", "data_wait") if name in seen]
    others = sorted((name for name in seen if name not in official), key=lambda name: (-ledger[name], name))
    return [
        *(("official", name, ledger[name]) for name in official),
        *((f"l{min(place, 5)}", name, ledger[name]) for place, name in enumerate(others)),
    ]


def loss_lines(runs: Sequence[tuple[int, Curves]]) -> str:
    """Training loss against official seconds, a line a seed; "" where nothing was logged twice."""
    lines = [(seed, points) for seed, curves in runs if len(points := loss_points(curves)) > 1]
    if not lines:
        return ""
    x = spanning([at for _, points in lines for at, _ in points], LEFT, WIDTH - RIGHT)
    y = spanning([loss for _, points in lines for _, loss in points], LOSS_HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, ticks(x), ticks(y, 4), "official time (s)", "training loss")
    for place, (seed, points) in enumerate(lines):
        path = "L".join(f"{x.at(at):.1f} {y.at(loss):.1f}" for at, loss in points)
        parts.append(
            f'<path class="loss c{place % NUM_COLOURS}" d="M{path}"><title>seed {seed:d}</title></path>'
        )
    return drawing("Training loss against official time, one line a seed", parts, LOSS_HEIGHT)


def loss_points(curves: Curves) -> list[tuple[float, float]]:
    """(official seconds, mean loss since the point before) at up to MOST_POINTS of the logged steps."""
    logged = list(zip(curves.logged_steps, curves.logged_seconds, strict=False))
    stride = -(-len(logged) // MOST_POINTS)
    kept = logged[stride - 1 :: stride] if logged else []
    points, before = [], 0
    for step, seconds in kept:
        losses = [loss for loss in curves.losses[before:step] if loss is not None]
        if losses:
            points.append((seconds, statistics.fmean(losses)))
        before = step
    return points
