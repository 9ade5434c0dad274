"""Commands about records: verify, leaderboard."""

from __future__ import annotations

import argparse

from bench.commands.shared import emit, workspace
from bench.errors import VerificationFailed


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
    from bench.board.build import check_board, write_board

    space = workspace(options)
    if options.check:
        check_board(space)
        print(f"{space.board.relative_to(options.root)} is what the records say")
    else:
        print(f"wrote {write_board(space).relative_to(options.root)}")
