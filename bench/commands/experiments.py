"""Commands about experiments: compare, gate, arch, sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.commands.shared import emit, jobs_asked, tell, workspace
from bench.errors import DataError, RecipeError


def compare(options: argparse.Namespace) -> None:
    """`bench compare`."""
    from bench.experiments.compare import compare as compared
    from bench.experiments.compare import comparison_text, loss_chart
    from bench.records.store import read_all
    from bench.spec.track import load_track

    space = workspace(options)
    records = [stored.record for stored in read_all(space.records)]
    a, b = (recipe_name(path) for path in (options.a, options.b))
    found, one, other = compared(records, a, b, options.track, options.effect)
    if options.plot:
        write_text(options.plot, loss_chart(one, other))
    if options.json:
        emit(found)
    else:
        print(comparison_text(found, load_track(found.track, space.tracks).track))


def gate(options: argparse.Namespace) -> None:
    """`bench gate`."""
    from bench.experiments.decisions import write_changelog, write_once
    from bench.experiments.depth_gate import gate_text
    from bench.experiments.profile import profile_chart
    from bench.experiments.verdict import GateRequest, decision_text
    from bench.experiments.verdict import gate as decided
    from bench.records.store import read_all

    space = workspace(options)
    request = GateRequest(
        candidate=recipe_name(options.candidate),
        baseline=recipe_name(options.baseline),
        track=options.track,
        target=options.target,
        cycle=options.cycle,
        phase=options.phase,
        miniseries=options.miniseries,
        target_depth=options.target_depth,
        concerns=tuple(options.concern),
    )
    if options.plot and options.miniseries is None:
        raise RecipeError("--plot draws the profile of a miniseries", "add --miniseries")
    decision, depths, problems = decided(space, read_all(space.records), request)
    if options.plot:
        names = {"baseline": decision.baseline, "candidate": decision.candidate}
        title = f"{decision.candidate} against {decision.baseline}: time to the baseline's score"
        write_text(options.plot, profile_chart(problems, title, names))
    folder = space.root / "leaderboard" / "decisions"
    path, is_new = write_once(folder, decision)
    log = write_changelog(folder)
    if options.json:
        emit(decision)
    else:
        print(decision_text(decision))
        print(f"\n{gate_text(depths)}\n" if depths else "")
        state = "wrote" if is_new else "known already:"
        print(f"{state} {path.relative_to(space.root)}, {log.relative_to(space.root)}")


def arch(options: argparse.Namespace) -> None:
    """`bench arch`."""
    from bench.experiments import architecture as shapes
    from bench.spec.toml import check_name

    if options.head_dim % 8:
        raise RecipeError(f"--head-dim {options.head_dim}", "heads are multiples of 8 wide")
    found = shapes.enumerate_shapes(
        options.params, options.head_dim, is_tied=options.tied, tolerance=options.tolerance
    )
    kept = shapes.balanced(found) if options.balanced else found
    ranked = shapes.ranked(kept, options.params, by_throughput=options.fastest)
    if not ranked:
        raise RecipeError(
            f"no shape of {options.params:,} parameters with heads of {options.head_dim}",
            "widen --tolerance, or leave out --balanced",
        )
    if options.write:
        path = workspace(options).submissions / f"{check_name(options.write, 'recipe')}.toml"
        if path.exists():
            raise RecipeError(f"{path}: exists", "take another name; recipes are not written over")
        write_text(path, shapes.recipe_text(ranked[0]))
    if options.json:
        rows = [
            {"shape": one, "shares": one.shares, "needs": one.needs, "total_if_tied": one.total_if_tied}
            for one in ranked
        ]
        emit({"params": options.params, "shapes": rows})
    else:
        print(shapes.shapes_text(ranked, options.params, options.head_dim))


def sweep(options: argparse.Namespace) -> None:
    """`bench sweep`."""
    from bench.board.build import write_board
    from bench.experiments import sweep_report as report
    from bench.experiments.runner import Place
    from bench.experiments.sweep_chart import sweep_chart
    from bench.experiments.sweep_plan import as_json, plan_sweep, sweep_table
    from bench.experiments.sweep_run import run_sweep, sweep_folder

    space = workspace(options)
    base = recipe_name(options.base_recipe) if options.base_recipe else None
    planned = plan_sweep(options.sweep, space, options.device, options.environment, options.track, base)
    if options.plan:
        emit(as_json(planned)) if options.json else print(sweep_table(planned))
        return
    tell(sweep_table(planned))
    jobs = jobs_asked(options, planned.track)
    done = run_sweep(planned, Place(space, options.device, options.environment), tell, jobs)
    if not jobs.is_inline:  # of runs side by side the last to write need not have seen all records
        write_board(space)
    folder, rows = sweep_folder(space, planned.name), report.rows_of(planned, done)
    text = report.summary(planned, done)
    write_text(folder / "runs.csv", report.csv_text(rows))
    write_text(folder / "README.md", text)
    write_text(folder / "cells.svg", sweep_chart(planned, done))
    if options.json:
        emit(rows)
    else:
        print(f"{text}\nwrote {folder.relative_to(space.root)}")


def recipe_name(path: Path) -> str:
    """The name of a recipe given as a name or as a file."""
    return path.name.removesuffix(".toml")


def write_text(path: Path, text: str) -> None:
    """Write a generated file, its folder with it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "name a place that can be written") from error
