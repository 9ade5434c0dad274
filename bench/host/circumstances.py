"""What may not change while a run is trained, be it by one process or by several: machine, torch and code.

A record names one machine and one commit. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.errors import DataError
from bench.host.facts import MachineFacts
from bench.host.provenance import Provenance, is_code_of, provenance

# Facts of a machine by which libraries choose their code and share out their sums, and what people call them.
_DECIDING = {
    "device_name": "device",
    "cpu_model": "processor",
    "features": "instructions",
    "cpu_cores": "cores",
}


class Circumstances(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those under which a checkpoint was made."""

    machine: dict[str, str]
    code: Provenance


def circumstances(facts: MachineFacts, root: Path) -> Circumstances:
    """Those of now, the code being that of the checkout at `root`."""
    return Circumstances(machine=deciding(msgspec.to_builtins(facts)), code=provenance(root))


def deciding(facts: Mapping[str, object]) -> dict[str, str]:
    """What of a machine's facts, as JSON has them, decides about a result's last bits and about its times."""
    versions = facts.get("versions")
    of_torch = versions.get("torch") if isinstance(versions, Mapping) else None
    return {word: _told(facts.get(name)) for name, word in _DECIDING.items()} | {"torch": _told(of_torch)}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of `now` is not as it was, each told in words."""
    return [f"{name} {value}, not {then.get(name)}" for name, value in now.items() if value != then.get(name)]


def require_unchanged(then: Circumstances, facts: MachineFacts, root: Path, what: str) -> None:
    """Go on only where, and with the code, that `what` was begun.

    Raises:
        DataError: machine, torch or code are others.
    """
    found = differences(then.machine, deciding(msgspec.to_builtins(facts)))
    if not is_code_of(root, then.code):
        changed = " with uncommitted changes" if then.code.dirty_sha256 else ""
        found.append(f"other code, not commit {then.code.commit[:8]}{changed}")
    if found:
        raise DataError(
            f"{what} was begun under other circumstances: {'; '.join(found)}",
            "a record names one machine and one commit: go on where it began, or run without --resume",
        )


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
