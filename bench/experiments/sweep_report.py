"""What a sweep found: rows as CSV, a summary, a chart. Imports no torch."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence

import msgspec

from bench.experiments.statistics import Difference, Prior, contrast, holm, paired, resolution
from bench.experiments.sweep_plan import PlannedCell, SweepPlan
from bench.experiments.sweep_run import Done, scores_of, series_of, winner
from bench.experiments.time_to_target import first_reached, horizons_of, time_to_target
from bench.records.schema import Record
from bench.spec.recipe import Recipe
from bench.spec.track import seed_value

# The columns of an experiment's row and their order, as the first plan (its section 3.4) lists them.
COLUMNS = (
    *("timestamp", "git_commit", "experiment_name", "seed", "depth", "max_seq_len", "device_batch_size"),
    *("total_batch_size", "target_param_data_ratio", "warmdown_ratio", "warmdown_shape"),
    *("target_metric_name", "target_metric_threshold", "time_to_target_sec_measured"),
    *("time_to_target_sec_extrapolated", "extrapolation_method", "tok_per_sec_median", "dt_median_ms"),
    *("wall_time_sec", "final_train_loss", "min_val_bpb", "peak_mem_mib", "status"),
)
FAMILY_LEVEL = 0.05  # of all cells against the first, together
Row = dict[str, str | int | float | None]


def record_row(
    record: Record,
    metric: str,
    target: float,
    better: str,
    extrapolated: tuple[float | None, str] = (None, ""),
) -> Row:
    """One run as a row; what is not known is empty, never 0."""
    recipe = msgspec.convert(record.identity.recipe_resolved, Recipe)
    shape, timing, scores = record.shape, record.timing, record.scores
    measured = first_reached(record, target, better) if target else None
    return {
        "timestamp": record.created,
        "git_commit": record.identity.git_commit,
        "experiment_name": record.identity.recipe,
        "seed": record.identity.seed,
        "depth": shape.depth,
        "max_seq_len": shape.sequence_length,
        "device_batch_size": shape.device_sequences,
        "total_batch_size": shape.batch_tokens,
        "target_param_data_ratio": shape.param_data_ratio,
        "warmdown_ratio": recipe.schedule.warmdown_ratio,
        "warmdown_shape": recipe.schedule.warmdown_shape,
        "target_metric_name": metric,
        "target_metric_threshold": target or None,
        "time_to_target_sec_measured": measured,
        "time_to_target_sec_extrapolated": None if measured is not None else extrapolated[0],
        "extrapolation_method": "" if measured is not None else extrapolated[1],
        "tok_per_sec_median": timing.tokens_per_s_median,
        "dt_median_ms": 1000.0 * timing.step_median_s,
        "wall_time_sec": timing.wall_s,
        "final_train_loss": scores.final_train_loss,
        "min_val_bpb": scores.min_val_bpb,
        "peak_mem_mib": record.memory.peak_bytes / 2**20,
        "status": record.status,
    }


def rows_of(planned: SweepPlan, done: Sequence[Done]) -> list[Row]:
    """A row a job, in the order they were asked for; one without a record has its names and its status."""
    sweep, rows = planned.sweep, []
    extrapolated = _extrapolations(planned, done)
    for each in done:
        name = each.job.cell.cell.name
        if each.record is not None:
            found = extrapolated.get(name, (None, ""))
            rows.append(record_row(each.record, sweep.metric, sweep.target, sweep.better, found))
        else:
            rows.append(
                {
                    "experiment_name": name,
                    "seed": seed_value(planned.track.track, each.job.seed_index),
                    "status": each.outcome,
                }
            )
    return rows


def _extrapolations(planned: SweepPlan, done: Sequence[Done]) -> dict[str, tuple[float | None, str]]:
    """Cells whose method was run at three horizons: (seconds, method)."""
    sweep = planned.sweep
    found: dict[str, tuple[float | None, str]] = {}
    records = [each.record for each in done if each.record]
    for name, series in series_of(done).items() if sweep.target else ():
        if series.finished:
            prior = Prior(sweep.sigma, math.inf, "declared")
            horizons = horizons_of(records, series)
            time = time_to_target(horizons, sweep.target, better=sweep.better, prior=prior)
            if time.method in ("bracketed", "extrapolated"):
                found[name] = (time.seconds, time.method)
    return found


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV, the header first, lines ending in a newline."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return out.getvalue()


def against_first(planned: SweepPlan, done: Sequence[Done]) -> dict[str, tuple[Difference, float]]:
    """Each cell against the first one: its difference, and the p of all comparisons together (Holm)."""
    prior = Prior(planned.sweep.sigma, 19.0, "declared")
    first = scores_of(planned, done, planned.cells[0], fresh=False)
    found: dict[str, Difference] = {}
    for cell in planned.cells[1:]:
        scores = scores_of(planned, done, cell, fresh=False)
        whole = len(scores) == len(first) == planned.sweep.seeds
        test = paired(first, scores, prior) if whole else contrast((-1.0, 1.0), (first, scores), prior)
        if test is not None:
            found[cell.cell.name] = test
    adjusted = holm([test.p_two_sided for test in found.values()])
    return {name: (test, p) for (name, test), p in zip(found.items(), adjusted, strict=True)}


def summary(planned: SweepPlan, done: Sequence[Done]) -> str:
    """The sweep's result as Markdown: a row a cell, the winner on fresh seeds, what stayed open."""
    sweep, tests = planned.sweep, against_first(planned, done)
    lines = [f"# {planned.name}: {sweep.title}", ""]
    lines += [
        f"{sweep.base} on {planned.track.name}, {sweep.seeds} seeds a cell; generated by `bench sweep`.",
        "",
    ]
    lines += [f"| cell | {sweep.metric} | runs | against {planned.cells[0].cell.name} | 95 % | p (Holm) | |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for cell in planned.cells:
        lines.append(_row(planned, done, cell, tests.get(cell.cell.name)))
    lines += ["", _winner_sentence(planned, done), ""]
    unfinished = [each for each in done if each.outcome != "ok"]
    lines += [f"- {e.job.cell.cell.name}, seed {e.job.seed_index}: {e.outcome}" for e in unfinished]
    return "\n".join([*lines, ""] if unfinished else lines)


def _row(
    planned: SweepPlan, done: Sequence[Done], cell: PlannedCell, found: tuple[Difference, float] | None
) -> str:
    scores = scores_of(planned, done, cell, fresh=False)
    mean = f"{statistics.fmean(scores):.5f}" if scores else "none"
    if found is None:
        return f"| {cell.cell.name} | {mean} | {len(scores)} | | | | |"
    test, p = found
    verdict = "resolved" if p < FAMILY_LEVEL else resolution(test, planned.sweep.effect)
    if p >= FAMILY_LEVEL and test.is_resolved:
        verdict = "resolved alone, not among all comparisons"
    interval = f"{test.low:+.5f} to {test.high:+.5f}"
    figures = f"{test.estimate:+.5f} | {interval} | {p:.2g}"
    return f"| {cell.cell.name} | {mean} | {len(scores)} | {figures} | {verdict} |"


def _winner_sentence(planned: SweepPlan, done: Sequence[Done]) -> str:
    best = winner(planned, done)
    if best is None:
        return "No cell finished on all its seeds: there is no winner."
    chosen = statistics.fmean(scores_of(planned, done, best, fresh=False))
    fresh = scores_of(planned, done, best, fresh=True)
    if not fresh:
        return f"Best mean: {best.cell.name}, {chosen:.5f}, by the runs that chose it only."
    mean = statistics.fmean(fresh)
    return (
        f"Best mean: {best.cell.name}, {chosen:.5f} by the runs that chose it, {mean:.5f} on {len(fresh)} "
        f"fresh seeds ({mean - chosen:+.5f}); the fresh figure is the one to quote."
    )
