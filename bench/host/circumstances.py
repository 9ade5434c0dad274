"""What may not change while a run is trained, be it resumed: machine, libraries and code. Imports no torch.

A record names one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.host.facts import MachineFacts
from bench.host.provenance import Provenance, provenance, sources_sha256

# Facts of a machine by which libraries choose their code and share out their sums, and what people call them.
_DECIDING = {
    "device_name": "device",
    "cpu_model": "processor",
    "features": "instructions",
    "cpu_cores": "cores",
}


GO_ON_THERE = "a record names one machine and one commit: go on where it began, or run without --resume"


class Circumstances(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those under which a checkpoint was made."""

    machine: dict[str, str]
    code: Provenance
    sources_sha256: str = ""


def circumstances(facts: MachineFacts, root: Path) -> Circumstances:
    """Those of now, the code being that of the checkout at `root`."""
    return Circumstances(machine=_all_of(facts), code=provenance(root), sources_sha256=sources_sha256(root))


def _all_of(facts: MachineFacts) -> dict[str, str]:
    others = {"python": facts.python_version, "driver": str(facts.driver_version)}
    return deciding(msgspec.to_builtins(facts)) | others | facts.versions


def deciding(facts: Mapping[str, object]) -> dict[str, str]:
    """What of a machine's facts, as JSON has them, decides about a result's last bits and about its times."""
    versions = facts.get("versions")
    of_torch = versions.get("torch") if isinstance(versions, Mapping) else None
    return {word: _told(facts.get(name)) for name, word in _DECIDING.items()} | {"torch": _told(of_torch)}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of `now` is not as it was, each told once, in words: a CPU's device is its processor."""
    changed: dict[tuple[str, str | None], str] = {}
    for name, value in now.items():
        if value != then.get(name):
            changed.setdefault((value, then.get(name)), name)
    return [f"{name} {here}, not {there}" for (here, there), name in changed.items()]


def refusal(begun: Circumstances | None, now: Circumstances) -> str:
    """Why what was begun under those circumstances is not gone on with now; "" where it may be."""
    if begun is None:
        return "does not say where and with what code it was made"
    names = begun.machine | now.machine  # what is not installed any more, too
    found = differences(begun.machine, {name: now.machine.get(name, "none") for name in names})
    if begun.sources_sha256 != now.sources_sha256:
        changed = " with uncommitted changes" if begun.code.dirty_sha256 else ""
        found.append(f"other code, not commit {begun.code.commit[:8]}{changed}")
    return f"was begun under other circumstances: {'; '.join(found)}" if found else ""


def changes_since(begun: Circumstances, root: Path) -> list[str]:
    """A remark where the code is no longer that which a run was begun with."""
    try:
        is_same = sources_sha256(root) == begun.sources_sha256
    except OSError:  # a file that goes while it is read: no reason to lose a finished run
        is_same = False
    return [] if is_same else ["the code was changed while it ran"]


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
