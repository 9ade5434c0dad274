"""Decisions: one immutable file each, the change log they make, and when a plateau is reached.

Imports no torch. The change log has, for each experiment, what the plans ask for: date, candidate change,
measured gains and losses, decision.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from bench.errors import DataError, VerificationFailed
from bench.experiments.gates import Criterion, Decided

SCHEMA = 1
CHANGELOG = "CHANGELOG.md"
# A cycle is full when all its phases were decided; phase 4 runs only after a plateau of the others.
PHASES = frozenset({1, 2, 3, 5})
PLATEAU_CYCLES = 2
PLATEAU_GAIN = 0.02


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was decided of one candidate, and by what."""

    schema: int
    date: str  # UTC, of the candidate's newest run: deciding again on the same runs is the same decision
    track: str
    candidate: str
    baseline: str
    change: str  # what sets the candidate apart
    cycle: int
    phase: int
    time_gain: float | None  # 1 - ratio of the official times
    robust_gain: float | None  # its lower 95 % bound
    bpb_difference: float | None
    miniseries: Literal["pass", "fail", "not shown", "not run"]
    criteria: list[Criterion]
    decision: Decided
    reasons: list[str]
    records: list[str]  # tips of the event logs it rests on


class Plateau(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the cycles so far are a plateau, and what a plateau opens."""

    is_declared: bool
    full_cycles: list[int]
    robust_gains: dict[str, float]  # of each cycle's best candidate
    why: str

    @property
    def is_deferred_work_open(self) -> bool:
        """7.3: work deferred to the next architecture may be considered only after a plateau."""
        return self.is_declared


def encode(decision: Decision) -> bytes:
    """Canonical bytes."""
    return msgspec.json.format(msgspec.json.encode(decision, order="deterministic"), indent=2) + b"\n"


def file_name(decision: Decision) -> str:
    """The name follows from the content; equal decisions are one file."""
    digest = hashlib.sha256(encode(decision)).hexdigest()[:8]
    return f"{decision.date[:10]}-{decision.candidate}-{digest}.json"


def write_once(folder: Path, decision: Decision) -> tuple[Path, bool]:
    """Write a decision whole or not at all; returns its path and whether it is new."""
    path = folder / file_name(decision)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(encode(decision))
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)
        except FileExistsError:
            return path, False
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the folder of decisions must be writable") from error
    return path, True


def read_all(folder: Path) -> list[Decision]:
    """Every decision, oldest first.

    Raises:
        VerificationFailed: a file is not a decision, or was edited.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            decision = msgspec.json.decode(path.read_bytes(), type=Decision)
        except (ValueError, RecursionError) as error:
            raise VerificationFailed(
                f"{path}: {error}", "decisions are written by `bench gate` only"
            ) from error
        if file_name(decision) != path.name:
            raise VerificationFailed(f"{path}: edited: its name is not its content's", "restore it from git")
        found.append(decision)
    return sorted(found, key=lambda d: (d.date, d.candidate, file_name(d)))


def plateau(decisions: Sequence[Decision]) -> Plateau:
    """7.2: two full cycles in a row, each under 2 % of robust gain, none promoted by the miniseries."""
    cycles: dict[int, list[Decision]] = defaultdict(list)
    for decision in decisions:
        cycles[decision.cycle].append(decision)
    full = sorted(cycle for cycle, made in cycles.items() if {d.phase for d in made} >= PHASES)
    gains = {cycle: max((d.robust_gain or 0.0 for d in cycles[cycle]), default=0.0) for cycle in full}
    last = full[-PLATEAU_CYCLES:]
    promoted = [
        d.candidate
        for cycle in last
        for d in cycles[cycle]
        if d.decision == "promote" or d.miniseries == "pass"
    ]
    if len(last) < PLATEAU_CYCLES:
        why = f"{len(full)} full cycles, a plateau takes {PLATEAU_CYCLES}"
    elif max(gains[cycle] for cycle in last) >= PLATEAU_GAIN:
        why = (
            f"a cycle gained {max(gains[cycle] for cycle in last):.1%}, a plateau is below {PLATEAU_GAIN:.0%}"
        )
    elif promoted:
        why = f"{promoted[0]} passed the miniseries"
    else:
        why = ""
    return Plateau(
        is_declared=not why,
        full_cycles=full,
        robust_gains={str(cycle): gain for cycle, gain in gains.items()},
        why=why,
    )


def changelog(decisions: Sequence[Decision]) -> str:
    """The change log, newest last, as Markdown."""
    lines = ["# Change log", "", "Generated by `bench gate` from the decisions beside it.", ""]
    for d in decisions:
        lines += [
            f"## {d.date[:10]} · {d.candidate} on {d.track}",
            "",
            f"- candidate change: {_plain(d.change)}, against {d.baseline}",
            f"- measured: {_measured(d)}",
            f"- decision: **{d.decision}** ({_plain('; '.join(d.reasons))})",
            "",
        ]
    state = plateau(decisions)
    opened = "declared: what was deferred to the next architecture may be reconsidered"
    lines += [f"Plateau: {opened if state.is_deferred_work_open else f'no ({state.why})'}.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that is no markup in Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)


def _measured(d: Decision) -> str:
    time = "time not known" if d.time_gain is None else f"time {-d.time_gain:+.1%}"
    bpb = "val_bpb not known" if d.bpb_difference is None else f"val_bpb {d.bpb_difference:+.4f}"
    return f"{time}, {bpb}"


def write_changelog(folder: Path) -> Path:
    """Generate the change log anew from all decisions."""
    path, text = folder / CHANGELOG, changelog(read_all(folder))
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the folder of decisions must be writable") from error
    return path
