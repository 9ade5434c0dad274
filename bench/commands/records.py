"""Commands about records: verify, leaderboard, export."""

from __future__ import annotations

import argparse

from bench.commands.shared import emit, workspace
from bench.errors import RecipeError, VerificationFailed


def verify(options: argparse.Namespace) -> int:
    """`bench verify`."""
    from bench.records.store import read, record_paths
    from bench.records.verify import verify as problems_of
    from bench.spec.track import load_tracks

    space = workspace(options)
    tracks = {named.name: named for named in load_tracks(space.tracks)}
    found: dict[str, list[str]] = {}
    for path in options.records or record_paths(space.records):
        try:
            stored = read(path)
            found[str(path)] = problems_of(stored, tracks.get(stored.record.identity.track))
        except VerificationFailed as error:
            found[str(path)] = [error.message.removeprefix(f"{path}: ")]
    if options.json:
        emit(found)
    else:
        for name, problems in found.items():
            print(f"{name}: {'ok' if not problems else '; '.join(problems)}")
        print(f"{len(found)} records, {sum(map(bool, found.values()))} with problems")
    return VerificationFailed.exit_code if any(found.values()) else 0


def leaderboard(options: argparse.Namespace) -> None:
    """`bench leaderboard`."""
    from bench.board.build import check_board, write_board, write_calibration

    space = workspace(options)
    if options.check and options.calibrate:
        raise RecipeError("--check and --calibrate exclude each other", "calibrate first, then check")
    if options.check:
        names = ", ".join(str(path.relative_to(options.root)) for path in check_board(space))
        print(f"{names}: what the records say")
        return
    if options.calibrate:
        print(f"wrote {write_calibration(space, options.calibrate).relative_to(options.root)}")
    for path in write_board(space):
        print(f"wrote {path.relative_to(options.root)}")


def export(options: argparse.Namespace) -> None:
    """`bench export`."""
    from bench.board.build import verified_records
    from bench.board.export import csv_of

    tracks, records = verified_records(workspace(options))
    print(csv_of(tracks, records), end="")
