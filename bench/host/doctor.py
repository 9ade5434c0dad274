"""What stands in the way of a run on this machine: findings, each with what mends it. Imports no torch."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from bench.errors import BenchError, DataError, PlanRefused
from bench.host.console import size
from bench.host.facts import MachineFacts
from bench.host.machine import hardware_class
from bench.host.provenance import provenance

OURS = ("bench", "model", "kernels")
# Text, tokens, compile cache, checkpoints and record of the quick recipe take a part of this.
LEAST_FREE_BYTES = 2**30
MARKS = {"ok": "ok", "note": "note", "fault": "FAULT"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. A note does not stop a run; a fault does, with this exit code."""

    name: str
    state: Literal["ok", "note", "fault"] = "ok"
    says: str
    mend: str = ""
    exit_code: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `bench doctor` found out."""

    machine_class: str
    facts: MachineFacts
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0 when a run can start, else that of the first fault."""
        return next((finding.exit_code for finding in self.findings if finding.state == "fault"), 0)


def fault(name: str, error: BenchError) -> Finding:
    """The finding that an error is."""
    return Finding(
        name=name, state="fault", says=error.message, mend=error.hint, exit_code=type(error).exit_code
    )


def looked_at(name: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds, or the fault it raises."""
    try:
        return look()
    except BenchError as error:
        return fault(name, error)


def host_findings(root: Path, folders: Iterable[Path], facts: MachineFacts, path: list[str]) -> list[Finding]:
    """All that can be found out without torch, in the order in which a run would trip over it.

    Args:
        folders: where a run writes.
        path: where Python looks for modules, `sys.path`.
    """
    return [
        *clashes(root, path),
        packages(root),
        device(facts),
        commit(root),
        *(looked_at("disk", lambda folder=folder: disk(folder)) for folder in folders),  # type: ignore[misc]
    ]


def packages(root: Path) -> Finding:
    """Whether what pyproject.toml pins is what is installed; torch may be another release or build."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(requirement.split("==") for requirement in project["dependencies"])
    found = {name: _version(name) for name in (*pins, "torch")}
    missing = sorted(name for name, version in found.items() if version is None)
    other = [
        f"{name} {found[name]} for {pin}" for name, pin in pins.items() if found[name] not in (pin, None)
    ]
    if missing:
        error = PlanRefused(f"not installed: {', '.join(missing)}", hint="make setup")
        return fault("packages", error)
    if other:
        says = f"not what pyproject.toml pins: {', '.join(other)}"
        return Finding(name="packages", state="note", says=says, mend="make setup")
    here = f"torch {found['torch']} and the {len(pins)} pinned packages are installed"
    return Finding(name="packages", says=here)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def clashes(root: Path, path: Sequence[str]) -> Iterator[Finding]:
    """Other packages of our names: a fault where Python would import them, a note where ours comes first.

    Hugging Face's `kernels` is one: `import kernels` is whichever sys.path has first.
    """
    for name in OURS:
        homes = [home for entry in path if (home := _home(name, entry)) is not None]
        others = [home for home in homes if home != root / name]
        if homes and others and homes[0] in others:
            error = PlanRefused(
                f"`import {name}` is {homes[0]}", hint=f"cd {root}, or uninstall the other {name}"
            )
            yield fault("names", error)
        elif others:
            says = f"another {name} is installed at {others[0]}; this project's comes first"
            yield Finding(name="names", state="note", says=says)


def _home(name: str, entry: str) -> Path | None:
    """Where an entry of sys.path has this module, if it does. A folder without code is none."""
    spec = PathFinder.find_spec(name, [entry or os.getcwd()])
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin


def device(facts: MachineFacts) -> Finding:
    """What a run would use, and why not a GPU."""
    count = f"{facts.device_count} x " if facts.device_count > 1 else ""
    says = (
        f"{count}{facts.device_name} ({hardware_class(facts)}), {size(facts.device_memory_bytes)}, "
        f"{facts.cpu_cores} cores, {facts.os} {facts.os_version}, Python {facts.python_version}"
    )
    if facts.driver_version:
        says += f", driver {facts.driver_version}"
    if facts.device_kind == "cpu" and facts.gpu_reason:
        says += f"; no GPU: {facts.gpu_reason}"
    return Finding(name="device", says=says)


def commit(root: Path) -> Finding:
    """Whether records can say which code ran."""
    found = provenance(root)
    if found.commit == "unknown":
        says = "this is no git checkout: records will name no commit"
        return Finding(name="commit", state="note", says=says, mend="run from a clone, with git installed")
    changed = ", with changes of its own" if found.dirty_sha256 else ""
    return Finding(name="commit", says=f"{found.commit[:12]}{changed}")


def disk(folder: Path) -> Finding:
    """Whether a run can write here, and how much.

    Raises:
        DataError: not writable, or less than a small run needs is free.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")
    except OSError as error:
        hint = "mend its permissions; in a container, mount a volume there"
        raise DataError(f"{folder} cannot be written: {error.strerror or error}", hint) from error
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < LEAST_FREE_BYTES:
        message = f"{folder}: only {size(free_bytes)} free, a run needs {size(LEAST_FREE_BYTES)}"
        raise DataError(message, "free space there, or choose another folder with --data")
    return Finding(name="disk", says=f"{size(free_bytes)} free in {folder}")


def has_torch() -> bool:
    """Whether there is a torch to ask further."""
    return find_spec("torch") is not None


def with_more(diagnosis: Diagnosis, findings: list[Finding]) -> Diagnosis:
    """The diagnosis with further findings."""
    return msgspec.structs.replace(diagnosis, findings=diagnosis.findings + findings)


def table(diagnosis: Diagnosis) -> str:
    """The findings, a line each, what mends them below."""
    lines = []
    for finding in diagnosis.findings:
        lines.append(f"{MARKS[finding.state]:<6}{finding.name:<17}{finding.says}")
        if finding.mend:
            lines.append(f"{'':<23}-> {finding.mend}")
    faults = [finding for finding in diagnosis.findings if finding.state == "fault"]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines.append(f"{count}: mend the first and ask again" if faults else "a run can start")
    return "\n".join(lines)
