"""The board's files as a pure function of the records: written, and held to what the records say."""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path

from bench.board.calibration import calibration_of, encode_calibration, load_calibrations
from bench.board.feed import feed
from bench.board.listing import listing
from bench.board.page import page
from bench.board.picture import picture
from bench.board.reported import Reported, load_reported
from bench.board.standings import Section, standings
from bench.board.states import NOTHING_KNOWN, Known, load_disputes
from bench.errors import DataError, RecipeError, VerificationFailed
from bench.experiments.series import first_runs
from bench.host.collector import collection_paused
from bench.records.replayed import load_replays, record_sha256
from bench.records.schema import Record
from bench.records.store import read_all
from bench.records.verify import require_all_valid
from bench.spec.track import NamedTrack, load_tracks
from bench.spec.workspace import Workspace


def render(
    tracks: list[NamedTrack],
    records: list[Record],
    reported: Reported | None = None,
    known: Known = NOTHING_KNOWN,
) -> str:
    """LEADERBOARD.md of these records."""
    return listing(standings(tracks, records, known), reported)


def board_files(space: Workspace) -> dict[Path, bytes]:
    """Every file of a checkout's board; every record is verified first. A reported.toml may be absent."""
    with collection_paused():  # the collector's passes over the records took a sixth of the time
        sections = read_standings(space)
        reported = load_reported(space.reported) if space.reported.is_file() else None
        folder = space.board.parent
        return {
            space.board: listing(sections, reported).encode(),
            folder / "index.html": page(sections, reported).encode(),
            folder / "feed.json": feed(sections),
            folder / "board.svg": picture(sections).encode(),
        }


def read_standings(space: Workspace) -> list[Section]:
    """The standings of a checkout, with what is known of its records."""
    tracks, records = verified_records(space)
    folder = space.board.parent
    calibrations = folder / "calibrations"
    by_hash = (
        {record_sha256(record): record for record in records} if any(calibrations.glob("*.json")) else {}
    )
    known = Known(
        calibrations=load_calibrations(calibrations, tracks, by_hash),
        replays=load_replays(space.replays),
        disputes=load_disputes(folder / "disputes"),
    )
    return standings(tracks, records, known)


def verified_records(space: Workspace) -> tuple[list[NamedTrack], list[Record]]:
    """The checkout's tracks and records; VerificationFailed at the first record that does not hold."""
    tracks = load_tracks(space.tracks)
    by_name = {named.name: named for named in tracks}
    stored = read_all(space.records)
    require_all_valid(stored, by_name)
    return tracks, [one.record for one in stored]


def write_board(space: Workspace) -> list[Path]:
    """Write the board's files, each whole or not at all."""
    files = board_files(space)
    for path, data in files.items():
        _write(path, data)
    return list(files)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # runs side by side each rebuild the board
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "free space or mend the permissions") from error


def check_board(space: Workspace) -> list[Path]:
    """Raise VerificationFailed, naming the first line that differs, unless the board is the records'."""
    files = board_files(space)
    for path, expected in files.items():
        _check(path, expected)
    return list(files)


def _check(path: Path, expected: bytes) -> None:
    found = path.read_bytes() if path.is_file() else b""
    if found == expected:
        return
    pairs = zip_longest(found.split(b"\n"), expected.split(b"\n"), fillvalue=None)
    number, (line, _) = next((i, pair) for i, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
    shown = "it ends" if line is None else ascii(line[:100].decode(errors="replace"))
    raise VerificationFailed(
        f"{path.name}:{number} is not what the records say: {shown}",
        "run `make leaderboard` and commit it",
    )


def write_calibration(space: Workspace, of: str) -> Path:
    """Write a track's calibration from the records of one recipe.

    Args:
        of: TRACK/RECIPE.

    Raises:
        RecipeError: no such records.
        VerificationFailed: they do not make a calibration.
    """
    track, _, recipe = of.partition("/")
    _, records = verified_records(space)
    here = [one for one in records if (one.identity.track, one.identity.recipe) == (track, recipe)]
    if not here:
        raise RecipeError(f"no record of {of!a}", "name TRACK/RECIPE, such as cpu-quick/quick")
    path = space.board.parent / "calibrations" / f"{track}.json"
    _write(path, encode_calibration(calibration_of([one for one in first_runs(here) if one.status == "ok"])))
    return path
