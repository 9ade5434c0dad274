"""board.svg: the board's fullest table as one picture, for the README, light or dark as its reader has it.

An interval a row, so that what a difference is worth is seen before any figure is read. It is written with
the board and, like the board, is a pure function of the records. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.board.delta import base_of, short_of
from bench.board.ranking import Estimate
from bench.board.rows import Row, is_ranked
from bench.board.standings import Section, Table
from bench.drawing.axes import Axis, spanning, ticks
from bench.drawing.words import text

MOST_ROWS = 10
WIDTH, MARGIN, TOP, ROW_PX, FOOT = 960, 28, 112, 44, 62
RANK, NAME, PLOT, SCORE, TIME, STATE = 64, 84, (404, 640), 736, 832, 852  # right or left edges, in pixels
NAME_CHARACTERS, CHANGE_CHARACTERS = 34, 44
REACH = 3.0  # a row further off, or wider, than this many times three quarters of the others ends at the edge
STYLE = """
svg{--page:#fcfcfa;--ink:#1d2126;--quiet:#5f6872;--rule:#e3e5e4;--accent:#0b6e75;--bad:#b4532a}
@media (prefers-color-scheme:dark){
svg{--page:#14171a;--ink:#e4e7e9;--quiet:#98a2ab;--rule:#2c3237;--accent:#5cc2c5;--bad:#e08a5f}}
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
.page{fill:var(--page);stroke:var(--rule)}.title{font-size:20px;font-weight:600}.name{font-weight:600}
.quiet{font-size:12px;fill:var(--quiet)}.end{text-anchor:end}.mid{text-anchor:middle}
.rule{stroke:var(--rule)}.err{stroke:var(--quiet);stroke-width:2;stroke-linecap:round}
.dot{fill:var(--accent)}.open{fill:var(--page);stroke:var(--quiet);stroke-width:2}
.good{fill:var(--accent)}.disputed{fill:var(--bad)}
"""


class Fullest(NamedTuple):
    """The table that is shown, and where it stands."""

    section: Section
    table: Table


def picture(sections: Sequence[Section]) -> str:
    """The whole picture; with no record on the board it says so."""
    found = fullest(sections)
    if found is None:
        return _svg("No record yet", ["No run has been recorded."], [], TOP + FOOT)
    section, table = found
    track = section.track.track
    rows = table.rows[:MOST_ROWS]
    bottom = TOP + ROW_PX * len(rows)
    by_score = track.score.rank_by == "metric"
    figures = [row.score if by_score else row.official_s for row in rows]
    axis = _axis(figures)
    arrow = "lower is better" if not by_score or track.score.better == "lower" else "higher is better"
    shown = f"{track.score.metric if by_score else 'official time (s)'}, {arrow}, 95 % intervals over seeds"
    parts = [*_heads(track.score.metric), *_grid(axis, bottom)]
    for place in range(len(rows)):
        parts += _row(section, table, place, axis, figures[place], TOP + ROW_PX * place)
        parts += [f'<path class="rule" d="M{MARGIN} {TOP + ROW_PX * (place + 1)}H{WIDTH - MARGIN}"/>']
    left = len(table.rows) - len(rows)
    more = f" {left} more rows on the board." if left else ""
    foot = f"Generated from the records; ranks that the runs cannot tell apart are shared.{more}"
    parts.append(_text(MARGIN, bottom + 44, "quiet", foot))
    return _svg(track.title, [shown], parts, bottom + FOOT)


def fullest(sections: Sequence[Section]) -> Fullest | None:
    """The table with the most ranked rows, then the most rows; of equals the first."""
    tables = [Fullest(section, table) for section in sections for table in section.tables if table.rows]
    return max(
        tables, key=lambda one: (sum(map(is_ranked, one.table.rows)), len(one.table.rows)), default=None
    )


def _axis(figures: Sequence[Estimate]) -> Axis:
    """Over all intervals but those of outliers, far off or wide, next to which all others would be points."""
    means = sorted(figure.mean for figure in figures)
    middle = means[len(means) // 2]
    distances = sorted(abs(mean - middle) for mean in means)
    most = REACH * distances[(3 * len(distances) - 1) // 4] or distances[-1]
    widths = sorted(figure.half_width or 0.0 for figure in figures)
    widest = REACH * widths[(3 * len(widths) - 1) // 4] or widths[-1]
    near = [
        figure
        for figure in figures
        if abs(figure.mean - middle) <= most and (figure.half_width or 0.0) <= widest
    ]
    return spanning([end for figure in near for end in _ends(figure)], *map(float, PLOT))


def _mark(row: Row, figure: Estimate, axis: Axis, middle: float) -> str:
    """What is in view of the row's point and interval; an arrow at each edge that either goes beyond."""
    ends = _ends(figure)
    low, high = (axis.at(min(max(end, axis.low), axis.high)) for end in ends)
    parts = [f'<path class="err" d="M{low:.1f} {middle:g}H{high:.1f}"/>'] if high > low else []
    parts += [_text(low, middle + 5, "", "←")] if ends[0] < axis.low else []
    parts += [_text(high, middle + 5, "end", "→")] if ends[1] > axis.high else []
    if axis.low <= figure.mean <= axis.high:
        kind = "dot" if is_ranked(row) else "open"
        parts.append(f'<circle class="{kind}" cx="{axis.at(figure.mean):.1f}" cy="{middle:g}" r="5"/>')
    return "".join(parts)


def _ends(figure: Estimate) -> tuple[float, float]:
    width = figure.half_width or 0.0
    return figure.mean - width, figure.mean + width


def _heads(metric: str) -> list[str]:
    at = TOP - 14
    return [
        _text(RANK, at, "quiet end", "rank"),
        _text(NAME, at, "quiet", "recipe, and what sets it apart"),
        _text(SCORE, at, "quiet end", metric),
        _text(TIME, at, "quiet end", "time (s)"),
        _text(STATE, at, "quiet", "state"),
        f'<path class="rule" d="M{MARGIN} {TOP}H{WIDTH - MARGIN}"/>',
    ]


def _grid(axis: Axis, bottom: int) -> list[str]:
    return [
        f'<path class="rule" d="M{axis.at(value):.1f} {TOP}V{bottom}"/>'
        + _text(axis.at(value), bottom + 18, "quiet mid", label)
        for value, label in ticks(axis, 4)
    ]


def _row(section: Section, table: Table, place: int, axis: Axis, figure: Estimate, top: int) -> list[str]:
    row = table.rows[place]
    upper, lower, middle = top + 19, top + 35, top + ROW_PX / 2
    base = base_of(row, table, section)
    apart = short_of(row, base, section.track)
    against = f"{base.recipe}+{apart}" if base else apart
    return [
        _text(RANK, middle + 5, "name end", table.rank(place)),
        _text(NAME, upper, "name", _cut(row.recipe, NAME_CHARACTERS)),
        _text(NAME, lower, "quiet", _cut(against, CHANGE_CHARACTERS)),
        _mark(row, figure, axis, middle),
        *_figures(row.score, 4, SCORE, upper, lower),
        *_figures(row.official_s, 1, TIME, upper, lower),
        _text(STATE, upper, _tone(row), row.state),
        _text(STATE, lower, "quiet", f"{len(row.seeds)} seeds"),
    ]


def _figures(figure: Estimate, digits: int, right: int, upper: int, lower: int) -> list[str]:
    told = [_text(right, upper, "end", f"{figure.mean:,.{digits}f}")]
    if figure.half_width is not None:
        told.append(_text(right, lower, "quiet end", f"± {figure.half_width:.{digits}f}"))
    return told


def _tone(row: Row) -> str:
    return {"verified": "good", "replayed": "good", "disputed": "disputed"}.get(row.state, "quiet")


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _text(x: float, y: float, kind: str, shown: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text(shown)}</text>'


def _svg(title: str, says: Sequence[str], parts: Sequence[str], height: int) -> str:
    """Self-contained: an image in a README loads nothing and takes no style from the page around it."""
    heads = [_text(MARGIN, 44, "title", title), *(_text(MARGIN, 66, "quiet", line) for line in says)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>speedrun-bench: {text(title)}</title><style>{STYLE}</style>"
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>'
        f"{''.join([*heads, *parts])}</svg>\n"
    )
