"""Figures that others published, from leaderboard/reported.toml, ranked nowhere. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bench.board.markdown import escape, table
from bench.errors import RecipeError
from bench.spec.fields import Line, Name, Positive, Table, Text
from bench.spec.toml import faults, read_toml

# Characters that mean nothing in Markdown within [..](<..>), or the documents this project grew from.
Source = Annotated[
    str, Meta(pattern=r"^(https://[A-Za-z0-9.-]{1,80}/[A-Za-z0-9._/#-]{1,160}|seeds/[0-9]{3})\Z")
]
Bits = Annotated[float, Meta(gt=0.0, le=16.0)]
Core = Annotated[float, Meta(ge=-1.0, le=1.0)]

HEAD = """## Reported, not run here

What others published of the recipes in `submissions/` and of their neighbours: `leaderboard/reported.toml`.
The harness ran none of it, verified none of it and ranks none of it. Figures of one table were measured
over the same text in the same way as far as their sources tell; those of different tables were not. Rows
stand in the order of their times, which leave out the first eleven steps, as nanochat does. A – was not
published.
"""
COLUMNS = (
    ("run", "left"),
    ("recipe", "left"),
    ("time (min)", "right"),
    ("val_bpb", "right"),
    ("CORE", "right"),
    ("runs", "right"),
    ("source", "left"),
    ("remark", "left"),
)


class Group(Table, frozen=True, kw_only=True):
    """[[group]]: figures that may stand in one table."""

    name: Name
    title: Line
    says: Text  # what was measured, and what keeps it from being compared with the other groups


class Figure(Table, frozen=True, kw_only=True):
    """[[figure]]: one published result; what was not published is left out."""

    name: Line
    group: Name
    submission: Annotated[Name, Meta(description="the recipe of submissions/, if there is one")] | None = None
    time_minutes: Annotated[Positive, Meta(description="training time, mean over the runs")] | None = None
    val_bpb: Annotated[Bits, Meta(description="mean over the runs")] | None = None
    core: Annotated[Core, Meta(description="mean over the runs")] | None = None
    num_runs: Annotated[int, Meta(ge=1, le=1000, description="runs behind the mean")] | None = None
    source: Annotated[Source, Meta(description="a plain https link or seeds/NNN")]
    remark: Line = ""


class Reported(Table, frozen=True, kw_only=True):
    """The whole file."""

    group: tuple[Group, ...] = ()
    figure: tuple[Figure, ...] = ()


def load_reported(path: Path) -> Reported:
    """The published figures, checked.

    Raises:
        RecipeError: every problem of the file at once.
    """
    data = read_toml(path)
    problems = _faults(data)
    if not problems:
        reported = msgspec.convert(data, Reported)
        problems = _incoherences(reported)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(
            f"{path}: {count}", "bench/board/reported.py says what each field is", problems=tuple(problems)
        )
    return reported


def _faults(data: dict[str, Any]) -> list[str]:
    """Problems of shape, each entry by its place: `faults` looks into tables, not into lists of them."""
    found = []
    for key, kind in (("group", Group), ("figure", Figure)):
        entries = data.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            found.append(f"{key}: must be tables, [[{key}]]")
            continue
        for number, entry in enumerate(entries, start=1):
            found += faults(entry, kind, f"{key} {number}: ")
    return found + faults(
        {key: value for key, value in data.items() if key not in ("group", "figure")}, Reported, ""
    )


def _incoherences(reported: Reported) -> list[str]:
    """What each entry allows alone but not together."""
    groups = [group.name for group in reported.group]
    names = [figure.name for figure in reported.figure]
    used = {figure.group for figure in reported.figure}
    found = [f"group {name!r}: given twice" for name in sorted(set(groups)) if groups.count(name) > 1]
    found += [f"group {name!r}: no figure is in it" for name in groups if name not in used]
    found += [f"figure {name!r}: given twice" for name in sorted(set(names)) if names.count(name) > 1]
    for figure in reported.figure:
        if figure.group not in groups:
            found.append(
                f"figure {figure.name!r}: no group {figure.group!r}; there are {', '.join(groups) or 'none'}"
            )
        if figure.time_minutes is None and figure.val_bpb is None and figure.core is None:
            found.append(f"figure {figure.name!r}: none of time_minutes, val_bpb and core")
    return found


def reported_section(reported: Reported) -> str:
    """The board's last section: a table a group, in the file's order; rows by time, then by name."""
    parts = [HEAD]
    for group in reported.group:
        rows = sorted((figure for figure in reported.figure if figure.group == group.name), key=_place)
        text = table(list(COLUMNS), [_cells(figure) for figure in rows])
        parts.append(f"### {escape(group.title)}\n\n{escape(group.says)}\n\n{text}\n")
    return "\n".join(parts)


def _place(figure: Figure) -> tuple[bool, float, str]:
    return figure.time_minutes is None, figure.time_minutes or 0.0, figure.name


def _cells(figure: Figure) -> list[str]:
    recipe = figure.submission
    return [
        escape(figure.name),
        f"[{escape(recipe)}](<../submissions/{recipe}.toml>)" if recipe else "–",
        "–" if figure.time_minutes is None else f"{figure.time_minutes:,.1f}",
        _score(figure.val_bpb),
        _score(figure.core),
        "–" if figure.num_runs is None else str(figure.num_runs),
        _link(figure.source),
        escape(figure.remark),
    ]


def _score(value: float | None) -> str:
    """The digits that were published, four at least."""
    return "–" if value is None else f"{value:.6f}".rstrip("0").ljust(len(f"{value:.4f}"), "0")


def _link(source: str) -> str:
    """The source as a link that shows its last two parts, such as `pull/733`."""
    if not source.startswith("https://"):
        return escape(source)
    return f"[{escape('/'.join(source.rstrip('/').split('/')[-2:]))}](<{source}>)"
