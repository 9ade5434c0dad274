"""What a sweep will do and cost, before anything starts, and its cells' couplings. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from bench.errors import PlanRefused, RecipeError
from bench.experiments.statistics import ALPHA, POWER, runs_needed
from bench.experiments.sweep import Cell, Sweep, cells_of, load_sweep, submission_of, write_cell
from bench.host.facts import Kind
from bench.host.machine import detect
from bench.host.planning import device_refusals, plan_machine, read_rates
from bench.spec.plan import Plan, make_plan
from bench.spec.submission import Submission, load
from bench.spec.toml import check_name
from bench.spec.track import NamedTrack, load_track, on_track, scale_fields
from bench.spec.workspace import Workspace

Planner = Callable[[Submission], Plan]
MATCHED_WITHIN = 0.01  # whole steps make budgets unequal; cells that differ by more are not matched


class PlannedCell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with its recipe's file, hash and plan."""

    cell: Cell
    path: Path
    recipe_sha256: str
    plan: Plan


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole sweep, planned."""

    name: str
    sweep: Sweep
    track: NamedTrack
    cells: list[PlannedCell]
    num_runs: int  # the winner's fresh seeds included
    seconds: float | None  # None: no rate of this machine is known
    dollars: float | None
    runs_needed: int | None  # a cell, to resolve the declared effect
    refusals: list[str]


def plan_sweep(
    path: Path,
    space: Workspace,
    kind: Kind | None,
    environment: Mapping[str, str],
    track_name: str | None,
    base_name: str | None = None,
) -> SweepPlan:
    """Cells coupled, matched, written below .runs/sweeps/ and planned on this machine.

    Args:
        base_name: the recipe that cells stand on, instead of the sweep's own; it is in the cells' names.
    """
    name, sweep = path.stem, load_sweep(path)
    if track_name:
        sweep = msgspec.structs.replace(sweep, track=track_name)
    if base_name and base_name != sweep.base:
        name = f"{name}-{check_name(base_name, 'recipe')}"
        sweep = msgspec.structs.replace(sweep, base=base_name)
    track = load_track(sweep.track, space.tracks)
    base = load(space.submissions / f"{sweep.base}.toml", space.submissions)
    planner = planner_of(space, kind, environment, track)
    base_plan = planner(submission_of(base.recipe, Cell(name=sweep.base, settings=sweep.common)))
    refusals = conflicts(sweep, cells_of(name, sweep), track)
    cells = []
    for cell in cells_of(name, sweep) if not refusals else []:
        made = coupled(sweep, cell, base, base_plan, planner)
        submission = submission_of(base.recipe, made)
        file = write_cell(space.runs / "sweeps" / name, sweep, made)
        assert load(file, space.submissions).sha256 == submission.sha256, "the file says what was planned"
        plan = planner(submission)
        cells.append(PlannedCell(cell=made, path=file, recipe_sha256=submission.sha256, plan=plan))
    refusals += _of_cells(cells)
    refusals += unmatched(sweep, base_plan, cells)
    needed = runs_needed(sweep.effect, sweep.sigma)
    if needed is None or needed > sweep.seeds:
        refusals.append(_too_few(sweep, needed))
    seconds = _total_seconds(sweep, cells)
    rate = track.track.hardware.dollars_per_device_hour * track.track.hardware.device_count
    return SweepPlan(
        name=name,
        sweep=sweep,
        track=track,
        cells=cells,
        num_runs=len(cells) * sweep.seeds + sweep.confirm_seeds,
        seconds=seconds,
        dollars=seconds / 3600 * rate if seconds is not None and rate else None,
        runs_needed=needed,
        refusals=refusals,
    )


def _of_cells(cells: list[PlannedCell]) -> list[str]:
    """What the cells' plans refuse, each once, with whose it is."""
    whose: dict[str, list[str]] = {}
    for each in cells:
        for refusal in each.plan.refusals:
            whose.setdefault(refusal, []).append(each.cell.name)
    return [
        f"{'every cell' if len(names) == len(cells) else ', '.join(names)}: {refusal}"
        for refusal, names in whose.items()
    ]


def _too_few(sweep: Sweep, needed: int | None) -> str:
    would = f"{needed} would" if needed is not None else "no number of runs would"
    return (
        f"{sweep.seeds} seeds a cell cannot resolve {sweep.effect:g} of {sweep.metric} "
        f"(sigma {sweep.sigma:g}, level {ALPHA}, power {POWER:.0%}); {would}"
    )


def planner_of(
    space: Workspace, kind: Kind | None, environment: Mapping[str, str], track: NamedTrack
) -> Planner:
    """Plans of recipes on this machine and track."""
    facts, rates = detect(kind, environment=environment), read_rates(space.data / "rates.json")

    def plan(submission: Submission) -> Plan:
        recipe = on_track(submission.recipe, track.track, submission.name)
        machine = plan_machine(facts, track, recipe.precision.compute, recipe.model.depth, rates)
        made = make_plan(submission, track, machine)
        more = device_refusals(made, facts, environment)
        return msgspec.structs.replace(made, refusals=made.refusals + more)

    return plan


def conflicts(sweep: Sweep, cells: list[Cell], track: NamedTrack) -> list[str]:
    """Fields that a cell sets and the track sets again: cells that would all be one recipe."""
    fixed = set(scale_fields(track.track))
    found = []
    for field in sorted({field for cell in cells for field in cell.settings}):
        is_horizon = field.startswith("horizon.") and "horizon" in track.track.scale
        if field in fixed or is_horizon:
            found.append(f"track {track.name} sets {field}: every cell would be the same")
        if field.startswith("horizon.") and sweep.matched != "none":
            found.append(f"{field} is swept, and matched = {sweep.matched!r} sets the horizon")
    if "scaling.batch" in {f for cell in cells for f in cell.settings} and "batch.tokens" in fixed:
        found.append(f"track {track.name} sets batch.tokens: scaling.batch is a factor on an automatic batch")
    scaled = track.track.scale.get("horizon", {})
    if sweep.matched != "none" and scaled and sweep.matched not in scaled:
        found.append(
            f"track {track.name} sets horizon.{next(iter(scaled))}: {sweep.matched} cannot be matched"
        )
    return found


def coupled(sweep: Sweep, cell: Cell, base: Submission, base_plan: Plan, planner: Planner) -> Cell:
    """The cell with its budget matched and its rates moved as the sweep's couplings say."""
    settings = dict(cell.settings)
    if sweep.matched == "flops":
        settings["horizon.flops"] = base_plan.total_flops
    elif sweep.matched == "seconds" and base_plan.recipe.horizon.seconds is None:
        if base_plan.predicted_seconds is None:
            raise PlanRefused(
                "no rate of this machine is known, so times cannot be matched", "run the base once"
            )
        settings["horizon.seconds"] = base_plan.predicted_seconds
    scaling = base.recipe.scaling
    # The plan itself moves both rates with sqrt(B); where that is not wanted it is divided out again.
    plain = {f: v for f, v in settings.items() if f not in ("scaling.learning_rate", "scaling.weight_decay")}
    moved = Cell(name=cell.name, settings=plain)
    learning_rate = weight_decay = 1.0
    if "batch" not in sweep.couplings and (moved.touches("batch") or "scaling.batch" in plain):
        ratio = planner(submission_of(base.recipe, moved)).batch_tokens / base_plan.batch_tokens
        learning_rate = weight_decay = 1.0 / math.sqrt(ratio)
    is_moved = moved.touches("horizon") or sweep.matched != "none"
    if "horizon" in sweep.couplings and is_moved and math.isfinite(base_plan.tau):
        weight_decay *= planner(submission_of(base.recipe, moved)).tau / base_plan.tau
    for field, factor, nominal in (
        ("scaling.learning_rate", learning_rate, scaling.learning_rate),
        ("scaling.weight_decay", weight_decay, scaling.weight_decay),
    ):
        if factor != 1.0:
            settings[field] = float(settings.get(field, nominal)) * factor
    return Cell(name=cell.name, settings=settings)


def unmatched(sweep: Sweep, base_plan: Plan, cells: list[PlannedCell]) -> list[str]:
    """Cells whose budget is not the base's after all."""
    if sweep.matched != "flops":
        return []
    return [
        f"{each.cell.name}: {each.plan.total_flops / base_plan.total_flops:.3f} of the base's FLOPs; "
        "steps are too coarse to match them"
        for each in cells
        if abs(each.plan.total_flops / base_plan.total_flops - 1.0) > MATCHED_WITHIN
    ]


def _total_seconds(sweep: Sweep, cells: list[PlannedCell]) -> float | None:
    each = [cell.plan.predicted_seconds for cell in cells]
    known = [seconds for seconds in each if seconds is not None]
    if len(known) < len(each) or not known:
        return None
    return sum(known) * sweep.seeds + max(known) * sweep.confirm_seeds


def require(planned: SweepPlan) -> None:
    """Nothing is started of a sweep that cannot answer its question or run here.

    Raises:
        PlanRefused: with the first of its refusals.
        RecipeError: there is nothing to run.
    """
    if planned.refusals:
        more = f" (and {len(planned.refusals) - 1} more)" if len(planned.refusals) > 1 else ""
        raise PlanRefused(
            f"{planned.name}: {planned.refusals[0]}{more}", "`bench sweep FILE --plan` lists all"
        )
    if not planned.cells:
        raise RecipeError(f"{planned.name}: no cells", "give axes or cells")


def as_json(planned: SweepPlan) -> dict[str, object]:
    """The plan for programs: what a person reads, and each cell's whole plan."""
    return {
        "name": planned.name,
        "sweep": planned.sweep,
        "num_runs": planned.num_runs,
        "seconds": planned.seconds,
        "dollars": planned.dollars,
        "runs_needed": planned.runs_needed,
        "refusals": planned.refusals,
        "cells": [
            {"name": each.cell.name, "settings": each.cell.settings, "plan": each.plan}
            for each in planned.cells
        ],
    }


def sweep_table(planned: SweepPlan) -> str:
    """The plan for people: a line a cell, the cost, what it can resolve."""
    sweep = planned.sweep
    lines = [
        f"{planned.name}: {sweep.title}",
        f"{sweep.base} on {planned.track.name}, {sweep.seeds} seeds a cell",
        "",
    ]
    width = max((len(each.cell.name) for each in planned.cells), default=4)
    lines.append(f"{'cell':<{width}}  depth    batch      LR      WD    tau   steps    FLOPs  seconds")
    for each in planned.cells:
        plan = each.plan
        seconds = f"{plan.predicted_seconds:.0f}" if plan.predicted_seconds is not None else "?"
        lines.append(
            f"{each.cell.name:<{width}}  {plan.layers:>5} {plan.batch_tokens:>8} {plan.matrix_lr:>7.4f}"
            f" {plan.weight_decay:>7.4f} {plan.tau:>6.3g} {plan.iterations:>7} {plan.total_flops:>8.2e}"
            f" {seconds:>8}"
        )
    hours = f"{planned.seconds / 3600:.2f} h of training" if planned.seconds is not None else "time not known"
    cost = f", {planned.dollars:,.0f} dollars" if planned.dollars is not None else ""
    lines += [
        "",
        f"{planned.num_runs} runs ({sweep.confirm_seeds} of them the winner's on fresh seeds): {hours}{cost}",
    ]
    lines.append(f"resolves {sweep.effect:g} of {sweep.metric} from {planned.runs_needed} runs a cell on")
    return "\n".join([*lines, *(f"refused: {refusal}" for refusal in planned.refusals)])
