"""What a row is told by: its base, else the track's reference, and never each by the other."""

from __future__ import annotations

from bench.board.calibration import calibration_of
from bench.board.delta import base_of
from bench.board.standings import standings
from bench.board.states import Known
from bench.records.schema import Record
from tests.board.test_rows import runs
from tests.records.sample import changed, quick_track

TRACK = quick_track()


def of(recipe: str, base: str, bpb: float, num_runs: int = 1) -> list[Record]:
    """Runs of a method of its own that names a base."""
    records = runs(*(bpb + i / 100 for i in range(num_runs)), recipe_name=recipe)
    records = [changed(record, "identity.recipe_resolved.base", base) for record in records]
    return [
        changed(record, "identity.recipe_sha256", recipe.encode().hex().ljust(64, "0")) for record in records
    ]


def test_a_reference_that_stands_on_a_row_does_not_tell_it() -> None:
    reference = of("quick", "run6-fixed", 2.0, num_runs=6)
    records = [*reference, *of("run6-fixed", "run6", 2.2), *of("other", "unknown", 2.1)]
    known = Known(calibrations={TRACK.name: calibration_of(reference)})
    [section] = standings([TRACK], records, known)
    [table] = section.tables
    bases = {row.recipe: base_of(row, table, section) for row in table.rows}
    assert {name: base and base.recipe for name, base in bases.items()} == {
        "quick": "run6-fixed",
        "run6-fixed": None,
        "other": "quick",
    }
