"""Records as comma-separated values, a line a run: the columns of the experiments' own protocol, in its
order.

What a run did not measure is empty, never 0. The harness extrapolates no time to a target, so those two
columns are empty; the time is measured where the run reached its track's target at its one preset horizon.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import msgspec

from bench.records.schema import Record
from bench.spec.recipe import Recipe
from bench.spec.track import NamedTrack, on_track

COLUMNS = (
    "timestamp",
    "git_commit",
    "experiment_name",
    "seed",
    "depth",
    "max_seq_len",
    "device_batch_size",
    "total_batch_size",
    "target_param_data_ratio",
    "warmdown_ratio",
    "warmdown_shape",
    "target_metric_name",
    "target_metric_threshold",
    "time_to_target_sec_measured",
    "time_to_target_sec_extrapolated",
    "extrapolation_method",
    "tok_per_sec_median",
    "dt_median_ms",
    "wall_time_sec",
    "final_train_loss",
    "min_val_bpb",
    "peak_mem_mib",
    "status",
)
FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes a cell that begins so
Cell = str | int | float | None


def csv_of(tracks: Sequence[NamedTrack], records: Sequence[Record]) -> str:
    """The header and a line a record, by date."""
    by_name = {named.name: named for named in tracks}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in sorted(records, key=lambda record: (record.created, record.events_sha256_tip)):
        writer.writerow([_plain(cell) for cell in _line(by_name[record.identity.track], record)])
    return out.getvalue()


def _plain(cell: Cell) -> Cell:
    """Text that is no formula; None is written as an empty cell."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _line(named: NamedTrack, record: Record) -> tuple[Cell, ...]:
    identity, shape, timing, scores = record.identity, record.shape, record.timing, record.scores
    recipe = on_track(
        msgspec.convert(identity.recipe_resolved, Recipe), named.track, f"{identity.recipe} on {named.name}"
    )
    return (
        record.created,
        identity.git_commit,
        identity.recipe,
        identity.seed,
        shape.depth,
        shape.sequence_length,
        shape.device_sequences,
        shape.batch_tokens,
        recipe.horizon.param_data_ratio,
        recipe.schedule.warmdown_ratio,
        recipe.schedule.warmdown_shape,
        scores.metric,
        named.track.score.target or None,
        timing.official_s if scores.reached_target else None,
        None,
        None,
        timing.tokens_per_s_median,
        timing.step_median_s * 1e3,
        timing.wall_s,
        scores.final_train_loss,
        scores.min_val_bpb,
        record.memory.peak_bytes / 2**20,
        record.status,
    )
