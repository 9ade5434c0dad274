"""The outcome of a replay, as a file beside the records. Imports no torch.

`leaderboard/replays/<record's sha256>.json`, the latest replay of that record.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bench.errors import DataError, VerificationFailed
from bench.host.circumstances import deciding, differences
from bench.host.facts import MachineFacts
from bench.records.schema import Record, encode

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="sha256 of a record file")]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")]


class ReplayedSegment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps after `start` up to `stop`, executed again; `problems` is empty where they came out as logged.

    `worst_difference` is the largest difference of a step's loss, in nats a token.
    """

    start: int
    stop: int
    compared: Literal["bitwise", "equivalence"]
    worst_difference: float
    problems: list[str]


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A replay of a record: the segments that `nonce` drew."""

    record: Hash
    passed: bool
    replayed: Day
    by: str  # the machine
    says: str
    nonce: str
    segments: list[ReplayedSegment]


def bits_depend_on(record: Record, facts: MachineFacts) -> list[str]:
    """What of this machine is not the record's and may change a result's last bits, each told in words."""
    return differences(deciding(record.machine.facts), deciding(msgspec.to_builtins(facts)))


def record_sha256(record: Record) -> str:
    """The hash by which replays, disputes and calibrations name a record: of its file's bytes."""
    return hashlib.sha256(encode(record)).hexdigest()


def write_replay(folder: Path, replay: Replay) -> Path:
    """Write the outcome over that of an earlier replay of the record; whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    path = folder / f"{replay.record}.json"
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(replay), indent=2) + b"\n")
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the folder of replays must be writable") from error
    return path


def load_replays(folder: Path) -> dict[str, Replay]:
    """Every replay, by the hash of its record.

    Raises:
        VerificationFailed: a file is not one, or its name is not its record's hash.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            replay = msgspec.json.decode(path.read_bytes(), type=Replay)
        except (ValueError, RecursionError) as error:
            raise VerificationFailed(f"{path}: {error}", "`bench replay` writes these files") from error
        if path.stem != replay.record:
            raise VerificationFailed(
                f"{path}: replays record {replay.record}", "name it by its record's hash"
            )
        found[replay.record] = replay
    return found
