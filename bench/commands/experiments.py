"""Commands about experiments: compare, gate."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.commands.shared import emit, workspace
from bench.errors import DataError


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
        concerns=tuple(options.concern),
    )
    decision = decided(space, read_all(space.records), request)
    folder = space.root / "leaderboard" / "decisions"
    path, is_new = write_once(folder, decision)
    log = write_changelog(folder)
    if options.json:
        emit(decision)
    else:
        print(decision_text(decision))
        state = "wrote" if is_new else "known already:"
        print(f"{state} {path.relative_to(space.root)}, {log.relative_to(space.root)}")


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
