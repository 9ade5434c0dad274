"""Record files: written once, found by track, recipe and seed. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from bench.errors import DataError, VerificationFailed
from bench.records.schema import Record, decode, encode, file_stem


class StoredRecord(NamedTuple):
    """A record and where it lies."""

    path: Path
    record: Record

    @property
    def events_path(self) -> Path:
        """The event log beside it."""
        return self.path.with_suffix(".events.jsonl")


def folder_of(records: Path, track: str, recipe: str) -> Path:
    """Where a recipe's records on a track lie."""
    return records / track / recipe


def write_once(records: Path, record: Record, events: bytes) -> Path:
    """Write a record and its events; the log first, the record last and whole.

    Raises:
        DataError: the folder cannot be written, or the record is already there.
    """
    folder = folder_of(records, record.identity.track, record.identity.recipe)
    path = folder / f"{file_stem(record)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = path.with_suffix(".events.jsonl")
        if not (log.is_file() and log.read_bytes() == events):  # as a run cut off between the two has left it
            _write_new(log, events)
        _write_new(path, encode(record))
    except OSError as error:
        hint = "free space or mend the permissions; `bench run --resume` writes the record again"
        raise DataError(f"{path}: {error.strerror or error}", hint) from error
    return path


def _write_new(path: Path, data: bytes) -> None:
    """Write, sync, and give the name only then; never over an existing file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> StoredRecord:
    """One record file.

    Raises:
        VerificationFailed: it is not a record of this schema.
    """
    try:
        return StoredRecord(path, decode(path.read_bytes()))
    except (ValueError, RecursionError) as error:  # msgspec's DecodeError, and text that is not UTF-8
        raise VerificationFailed(f"{path}: {error}", "records are written by `bench run` only") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "name a record file") from error


def read_all(records: Path) -> list[StoredRecord]:
    """Every record below a folder, in the order of their paths."""
    return [read(path) for path in record_paths(records)]


def record_paths(records: Path) -> list[Path]:
    """Every record file below a folder, in order."""
    return sorted(records.glob("*/*/*.json"))


def next_seed_index(records: Path, track: str, recipe: str) -> int:
    """The lowest seed index without a record."""
    taken = recorded_seeds(records, track, recipe)
    return next(index for index in range(len(taken) + 1) if index not in taken)


def recorded_seeds(records: Path, track: str, recipe: str) -> set[int]:
    """The seed indices that have a record."""
    names = (path.name for path in folder_of(records, track, recipe).glob("*.json"))
    return {int(match[1]) for name in names if (match := re.match(r"([0-9]{1,9})-", name))}
