"""The columns of a track's table on the page: what each shows, as HTML, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.board.delta import base_of, short_of
from bench.board.listing import mde, seeds
from bench.board.ranking import Estimate
from bench.board.rows import Row
from bench.board.standings import Section, Table
from bench.drawing.words import text

NONE = ""  # a cell without a figure; a column of these is left out
ABSENT = "–"


class Column(NamedTuple):
    """One column: an empty cell is a figure that was not measured."""

    name: str
    meaning: str
    is_text: bool
    cell: Callable[[Section, Table, int], str]


def columns_of(section: Section) -> list[Column]:
    """The columns of a track: one that scores CORE shows val_bpb beside it."""
    score = section.track.track.score
    unit = "of the score" if score.rank_by == "metric" else "of the time"
    hour = "; part of it is the machine's hour" if score.rank_by == "metric" else ""
    mark = "lower is better" if score.better == "lower" else "higher is better"
    extra = [_figure("val_bpb", "bits per byte of the validation text", lambda row: row.bpb, 4)]
    return [
        Column("rank", "places the row may have: t tests, Holm over the board at 5 %", False, _rank),
        Column("recipe", "name, and what sets it apart from its base", True, _recipe),
        _figure(score.metric, f"mean over seeds, half of a 95 % interval; {mark}", lambda row: row.score, 4),
        *(extra if score.metric != "val_bpb" else []),
        *(
            [_figure("CORE", "where it was scored", lambda row: row.core, 4)]
            if score.metric != "core"
            else []
        ),
        Column(
            "time (s)", f"official: every step and wait for data{hour}; cold adds compiling", False, _time
        ),
        _plain("tok/s", "median over steps, then over seeds", lambda row: f"{row.tokens_per_s:,.0f}"),
        _plain("MFU", "of the device's declared peak", lambda row: _share(row.mfu)),
        _plain("memory (GiB)", "peak", lambda row: f"{row.peak_bytes / 2**30:.2f}"),
        _plain("energy (kJ)", "mean over seeds", lambda row: _number(row.joules, 1e-3, 1)),
        _plain("cost ($)", "at the track's declared price", lambda row: _number(row.dollars, 1.0, 2)),
        Column("seeds", "runs that count, of those the track asks for", False, _seeds),
        Column("state", "provisional, verified, replayed, disputed or retired", True, _state),
        Column("MDE", f"least difference {unit} such rows show at 1 % with 90 % power", False, _mde),
        Column("proofs", "fused kernels proved equal to their references on this device", False, _proofs),
        Column("machine", "and the versions that move a figure", True, _machine),
    ]


def interval(figure: Estimate, digits: int) -> str:
    """A mean and its half-width, the latter set back."""
    spread = "" if figure.half_width is None else f" <i>± {figure.half_width:.{digits}f}</i>"
    return f"{figure.mean:,.{digits}f}{spread}"


def _figure(name: str, meaning: str, of: Callable[[Row], Estimate | None], digits: int) -> Column:
    def cell(section: Section, table: Table, place: int) -> str:
        figure = of(table.rows[place])
        return NONE if figure is None else interval(figure, digits)

    return Column(name, meaning, False, cell)


def _plain(name: str, meaning: str, of: Callable[[Row], str]) -> Column:
    return Column(name, meaning, False, lambda section, table, place: of(table.rows[place]))


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _number(value: float | None, factor: float, digits: int) -> str:
    return NONE if value is None else f"{value * factor:,.{digits}f}"


def _rank(section: Section, table: Table, place: int) -> str:
    return table.rank(place)


def _recipe(section: Section, table: Table, place: int) -> str:
    """The name, which opens the row; the version where a name has two; what sets it apart; inert levers."""
    row = table.rows[place]
    base = base_of(row, table, section)
    is_ambiguous = sum(other.recipe == row.recipe for other in table.rows) > 1
    version = f" <code>{row.recipe_sha256[:8]}</code>" if is_ambiguous else ""
    apart = short_of(row, base, section.track)
    against = f"{base.recipe}+{apart}" if base else apart
    inert = f'<small class="inert">inert: {text(", ".join(row.inert))}</small>' if row.inert else ""
    own = row.own_track != section.track.name
    scaled = f"<small>at this track's scale; its own is {text(row.own_track)}</small>" if own else ""
    claim = f"<small>{text(row.claim.short)}</small>" if row.claim else ""
    return f"<b>{text(row.recipe)}</b>{version}<small>{text(against)}</small>{claim}{scaled}{inert}"


def _time(section: Section, table: Table, place: int) -> str:
    row = table.rows[place]
    digits = 2 if row.official_s.mean < 100 else 1
    return f"{interval(row.official_s, digits)}<small>cold {row.cold_s:,.1f}</small>"


def _seeds(section: Section, table: Table, place: int) -> str:
    return text(seeds(section.track, table.rows[place]))


def _state(section: Section, table: Table, place: int) -> str:
    return f"<span>{table.rows[place].state}</span>"


def _mde(section: Section, table: Table, place: int) -> str:
    row = table.rows[place]
    return NONE if row.mde is None else mde(section.track, row)


def _proofs(section: Section, table: Table, place: int) -> str:
    count = table.rows[place].num_proofs
    return f"{count} ✓" if count else "0"


def _machine(section: Section, table: Table, place: int) -> str:
    row = table.rows[place]
    return f"{text(row.machine)}<small>{text(row.software)}</small>"
