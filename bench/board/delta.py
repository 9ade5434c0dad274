"""What sets a row's recipe apart: from its base where that is on the board, else from the defaults."""

from __future__ import annotations

from typing import Any

import msgspec

from bench.board.rows import Row
from bench.board.standings import Section, Table
from bench.spec.recipe import Recipe
from bench.spec.submission import differences, short_name
from bench.spec.track import NamedTrack, on_track


def base_of(row: Row, table: Table, section: Section) -> Row | None:
    """The row that another is compared with: its recipe's base, else the track's calibrated reference.

    Not a reference that stands on the row itself: each would be told by the other.
    """
    reference = section.calibration.recipe_sha256 if section.calibration else ""
    others = [other for other in table.rows if other is not row]
    named = [other for other in others if other.recipe == row.base]
    calibrated = [one for one in others if one.recipe_sha256 == reference and one.base != row.recipe]
    return next(iter([*named, *calibrated]), None)


def short_of(row: Row, base: Row | None, track: NamedTrack) -> str:
    """The canonical short name, at the track's scale, as the base or the defaults are."""
    recipe = _recipe(row, track)
    if base is None:
        return short_name(recipe, on_track(Recipe(), track.track, row.recipe))
    other = _recipe(base, track)
    return "the same method" if not differences(other, recipe) else short_name(recipe, other)


def changes(row: Row, base: Row | None, track: NamedTrack) -> list[tuple[str, Any, Any]]:
    """(field, before, after) of what sets a row's recipe apart from another's, or from the defaults."""
    if base is None:
        return differences(Recipe(), msgspec.convert(row.records[0].identity.recipe_resolved, Recipe))
    return differences(_recipe(base, track), _recipe(row, track))


def _recipe(row: Row, track: NamedTrack) -> Recipe:
    recipe = msgspec.convert(row.records[0].identity.recipe_resolved, Recipe)
    return on_track(recipe, track.track, row.recipe)
