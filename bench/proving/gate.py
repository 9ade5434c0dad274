"""The gate before training: a valid proof of every fused kernel of the plan, from the store or made now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.data.storage import write_atomic
from bench.host.facts import MachineFacts
from bench.proving.proof import LEAST_EXAMPLES, Proof, needed_versions, problems_of_proofs, proof_key
from kernels.choices import REFERENCE

# What decides about a proof: every source of the kernels and of the properties. Not the benchmarks.
_SOURCES = ("kernels", "bench/proving")
_MEASURING = "bench"


def sources_sha256(root: Path) -> str:
    """Hash of the sources of all kernels and properties, names included."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py")):
        if not path.stem.startswith(_MEASURING):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def proofs_for(
    kernels: Sequence[Mapping[str, str]],
    facts: MachineFacts,
    root: Path,
    folder: Path,
    tell: Callable[[str], None],
) -> list[Proof]:
    """A proof of each kernel that is not a reference; missing ones are made now and kept.

    Args:
        kernels: the plan's, with "op" and "implementation".
        root: the checkout, whose sources are hashed.
        folder: where proofs are kept.
        tell: called with one line before proofs are made.

    Raises:
        ProofFailed: a kernel disagrees with its reference on this device.
    """
    sources = sources_sha256(root)
    fused = [(each["op"], each["implementation"]) for each in kernels if each["implementation"] != REFERENCE]
    kept = {pair: stored(folder, *pair, sources, facts) for pair in fused}
    missing = [pair for pair, proof in kept.items() if proof is None]
    if missing:
        tell(f"proving {len(missing)} kernels (kept for the next run)")
        from bench.proving.prove import prove  # loads hypothesis, which a run with all its proofs needs not

        for pair in missing:
            kept[pair] = proof = prove(*pair, facts, sources, LEAST_EXAMPLES)
            keep(folder, proof, facts)
    return [proof for proof in kept.values() if proof is not None]


def stored(folder: Path, op: str, implementation: str, sources: str, facts: MachineFacts) -> Proof | None:
    """The proof kept for these sources on this device, if it is whole and holds."""
    path = _path(folder, op, implementation, sources, facts)
    try:
        proof = msgspec.json.decode(path.read_bytes(), type=Proof)
    except (OSError, ValueError):  # none yet, or cut short: it is made anew
        return None
    kernel = {"op": op, "implementation": implementation}
    return None if list(problems_of_proofs([kernel], [proof], facts.device_name, facts.versions)) else proof


def keep(folder: Path, proof: Proof, facts: MachineFacts) -> Path:
    """Write a proof where `stored` finds it; returns its path."""
    path = _path(folder, proof.op, proof.implementation, proof.sources_sha256, facts)
    write_atomic(
        path, msgspec.json.format(msgspec.json.encode(proof, order="deterministic"), indent=2) + b"\n"
    )
    return path


def _path(folder: Path, op: str, implementation: str, sources: str, facts: MachineFacts) -> Path:
    versions = needed_versions(implementation, facts.versions)
    key = proof_key(op, implementation, sources, facts.device_name, versions)
    return folder / f"{op}-{implementation}-{key[:16]}.json"
