"""Answers kept task by task, so that a killed evaluation goes on where it was. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from bench.data.storage import write_atomic
from bench.evaluation.core.score import KeptTask

# Raise it when equal weights, tokenizer and bundle may give other answers than before.
FORMAT = "core-answers-1"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """All that a task's answers depend on; baselines are applied later."""

    weights_sha256: str
    tokenizer_sha256: str
    bundle_sha256: str
    compute_dtype: str
    max_tokens: int
    max_per_task: int | None
    squad: str

    @property
    def folder_name(self) -> str:
        """One folder a subject."""
        data = msgspec.json.encode([FORMAT, self], order="sorted")
        return hashlib.sha256(data).hexdigest()[:24]


class Kept:
    """The answers of one subject on disk; without a folder nothing is kept."""

    def __init__(self, home: Path | None, subject: Subject) -> None:
        self.folder = None if home is None else home / subject.folder_name

    def read(self, label: str) -> KeptTask | None:
        """A task's answers, or None; a file that is not whole counts as absent."""
        if self.folder is None:
            return None
        try:
            kept = msgspec.json.decode((self.folder / f"{label}.json").read_bytes(), type=KeptTask)
        except (OSError, msgspec.MsgspecError):
            return None
        lengths = {len(kept.answers.predictions), len(kept.answers.margins), len(kept.answers.correct)}
        return kept if kept.label == label and len(lengths) == 1 and 0 not in lengths else None

    def write(self, kept: KeptTask) -> None:
        """Keep a task's answers; DataError where the disk refuses."""
        if self.folder is not None:
            write_atomic(self.folder / f"{kept.label}.json", msgspec.json.encode(kept))
