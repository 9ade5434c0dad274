"""Records for experiments: whole sample records whose scores, times and curves are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bench.records.schema import Record
from bench.records.store import write_once
from tests.records.sample import sample


def run_of(name: str, seed_index: int, bpb: float | None, seconds: float = 15.0, **others: Any) -> Record:
    """A valid record of this recipe with this score and official time less 0.5 s of waiting."""
    return sample(name, seed_index, bpb, train_s=seconds, **others)[0]


def series(name: str, bpbs: list[float | None], seconds: float = 15.0, **others: Any) -> list[Record]:
    """One run a score."""
    return [run_of(name, i, bpb, seconds + 0.01 * i, **others) for i, bpb in enumerate(bpbs)]


def changed(record: Record, part: str, **fields: Any) -> Record:
    """The record with fields of one part replaced."""
    replaced = msgspec.structs.replace(getattr(record, part), **fields)
    return msgspec.structs.replace(record, **{part: replaced})


def stored(records: Path, name: str, bpbs: list[float | None], seconds: float = 15.0, **others: Any) -> None:
    """Write a series as files, each with its event log."""
    for i, bpb in enumerate(bpbs):
        write_once(records, *sample(name, i, bpb, train_s=seconds + 0.01 * i, **others))
