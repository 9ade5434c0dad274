"""A sweep as a picture: a row a cell, its runs, their mean with its interval, the winner's fresh runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bench.drawing.axes import Axis, spanning, ticks
from bench.drawing.document import COLOURS, Key, document, key_rows
from bench.drawing.marks import CHARACTER_PX, dot, level, row_grid, row_name
from bench.drawing.words import text
from bench.experiments.distributions import t_quantile
from bench.experiments.statistics import CONFIDENCE, Prior, moderated, pooled_variance
from bench.experiments.sweep_plan import SweepPlan
from bench.experiments.sweep_run import Done, scores_of

WIDTH, RIGHT, ROW_PX, BELOW = 760, 30, 28, 50
MOST_CHARACTERS = 40
RUN, MEAN, FRESH = COLOURS[5], COLOURS[0], COLOURS[1]


class CellScores(NamedTuple):
    """A cell's scores: of the runs that choose, with the mean's interval, and of the winner's fresh runs."""

    name: str
    scores: list[float]
    half_width: float | None
    fresh: list[float]


def scores_by_cell(planned: SweepPlan, done: Sequence[Done]) -> list[CellScores]:
    """Every cell, in the sweep's order; intervals by the declared sigma with all cells' own scatter."""
    arms = [scores_of(planned, done, cell, fresh=False) for cell in planned.cells]
    variance, dof = moderated(*pooled_variance(arms), Prior(planned.sweep.sigma, 19.0, "declared"))
    reach = t_quantile(0.5 + CONFIDENCE / 2, dof) * math.sqrt(variance)
    return [
        CellScores(
            name=cell.cell.name.removeprefix(f"{planned.name}-"),
            scores=scores,
            half_width=reach / math.sqrt(len(scores)) if scores else None,
            fresh=scores_of(planned, done, cell, fresh=True),
        )
        for cell, scores in zip(planned.cells, arms, strict=True)
    ]


def sweep_chart(planned: SweepPlan, done: Sequence[Done]) -> str:
    """The whole SVG file, the best mean at the top; a cell without a score has its name only."""
    sign = 1.0 if planned.sweep.better == "lower" else -1.0
    cells = sorted(
        scores_by_cell(planned, done),
        key=lambda cell: sign * statistics.fmean(cell.scores) if cell.scores else math.inf,
    )
    longest = max((len(cell.name) for cell in cells), default=0)
    left = 24 + CHARACTER_PX * min(longest, MOST_CHARACTERS)
    keys = [Key("a run", RUN, True), Key("mean of a cell, 95 % interval", MEAN, True)]
    keys += [Key("winner on fresh seeds", FRESH, True)] if any(cell.fresh for cell in cells) else []
    key, top = key_rows(keys, WIDTH - RIGHT, 16)
    bottom = top + ROW_PX * len(cells)
    x = spanning([v for cell in cells for v in _reach(cell)] or [0.0, 1.0], left, WIDTH - RIGHT)
    best = next((statistics.fmean(cell.scores) for cell in cells if cell.scores), x.low)
    body = [*key, row_grid(x, bottom, ticks(x, 6), best, top)]
    for place, cell in enumerate(cells):
        body += _row(cell, x, top + ROW_PX * (place + 0.5), left, planned.sweep.metric)
    metric = f"{planned.sweep.metric} ({planned.sweep.better} is better); the line is the best mean"
    middle = (left + WIDTH - RIGHT) / 2
    body.append(f'<text class="mid name" x="{middle:g}" y="{bottom + 38:g}">{text(metric)}</text>')
    return document(planned.sweep.title, body, WIDTH, bottom + BELOW, 16)


def _reach(cell: CellScores) -> list[float]:
    ends = [*cell.scores, *cell.fresh]
    if cell.scores and cell.half_width is not None:
        mean = statistics.fmean(cell.scores)
        ends += [mean - cell.half_width, mean + cell.half_width]
    return ends


def _row(cell: CellScores, x: Axis, middle: float, left: float, metric: str) -> list[str]:
    parts = [row_name(cell.name, left, middle)]
    for kind, colour, values in (("run", RUN, cell.scores), ("fresh seed", FRESH, cell.fresh)):
        parts += [dot(x.at(v), middle + 5, f"{cell.name}, {kind}: {v:.5f}", fill=colour) for v in values]
    if cell.scores and cell.half_width is not None:
        mean = statistics.fmean(cell.scores)
        told = f"{cell.name}: mean {metric} {mean:.5f} ± {cell.half_width:.5f}, {len(cell.scores)} runs"
        parts.append(level(middle - 3, x.at(mean - cell.half_width), x.at(mean + cell.half_width)))
        parts.append(dot(x.at(mean), middle - 3, told, fill=MEAN))
    return parts
