"""The gate before training: a valid proof of every fused kernel of the plan, from the store or made now.

And one of what was compiled of it, which can only be made when it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.data.storage import write_atomic
from bench.host.facts import MachineFacts
from bench.host.provenance import files_sha256
from bench.proving.proof import (
    COMPILERS,
    LEAST_EXAMPLES,
    SCHEMA,
    CompiledProof,
    Proof,
    needed_versions,
    problems_of_compiled,
    problems_of_proofs,
    proof_key,
)
from bench.spec.plan import Plan
from kernels.choices import REFERENCE

# What decides about a proof: every source of the kernels and of the properties. Not the benchmarks.
_SOURCES = ("kernels", "bench/proving")
_MEASURING = "bench"
# And about what is compiled of a whole model.
_COMPILED_SOURCES = (*_SOURCES, "model", "bench/training", "bench/evaluation", "bench/host")


def sources_sha256(root: Path, folders: Sequence[str] = _SOURCES) -> str:
    """Hash of the sources of all kernels and properties, names included."""
    found = (path for folder in folders for path in (root / folder).rglob("*.py"))
    return files_sha256((path for path in found if not path.stem.startswith(_MEASURING)), root)


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


def compiled_proof_for(
    plan: Plan,
    facts: MachineFacts,
    cpu_cores: int,
    root: Path,
    folder: Path,
    error_ratios: Callable[[], dict[str, float]],
) -> CompiledProof:
    """That of an earlier run of the same model on this machine, or one made now and kept.

    Args:
        cpu_cores: of this rank; Inductor writes for a number of threads.
        root, folder: as in `proofs_for`.
        error_ratios: makes it (`bench.proving.compiled`); may raise ProofFailed.
    """
    proof = CompiledProof(
        schema=SCHEMA,
        sources_sha256=sources_sha256(root, _COMPILED_SOURCES),
        compiled_sha256=_compiled_sha256(plan, facts, cpu_cores),
        device_name=facts.device_name,
        versions={name: facts.versions[name] for name in COMPILERS if name in facts.versions},
        worst_error_ratios={},
    )
    key = hashlib.sha256(msgspec.json.encode(proof, order="deterministic")).hexdigest()
    path = folder / f"compiled-{key[:16]}.json"
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=CompiledProof)
    except (OSError, ValueError):
        kept = None
    same = kept and msgspec.structs.replace(proof, worst_error_ratios=kept.worst_error_ratios)
    if kept is None or kept != same or list(problems_of_compiled(kept, facts.device_name, facts.versions)):
        kept = msgspec.structs.replace(proof, worst_error_ratios=error_ratios())
        _write(path, kept)
    return kept


def _compiled_sha256(plan: Plan, facts: MachineFacts, cpu_cores: int) -> str:
    """Of what decides about the compiled code."""
    recipe = plan.recipe
    parts: list[object] = [plan.model, plan.device_sequences, plan.world_size, plan.kernels]
    parts += [cpu_cores, facts.cpu_model, facts.features]
    parts += [recipe.precision, recipe.compile, recipe.loss, recipe.optimizer.muon]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def keep(folder: Path, proof: Proof, facts: MachineFacts) -> Path:
    """Write a proof where `stored` finds it; returns its path."""
    path = _path(folder, proof.op, proof.implementation, proof.sources_sha256, facts)
    _write(path, proof)
    return path


def _write(path: Path, proof: Proof | CompiledProof) -> None:
    encoded = msgspec.json.encode(proof, order="deterministic")
    write_atomic(path, msgspec.json.format(encoded, indent=2) + b"\n")


def _path(folder: Path, op: str, implementation: str, sources: str, facts: MachineFacts) -> Path:
    versions = needed_versions(implementation, facts.versions)
    key = proof_key(op, implementation, sources, facts.device_name, versions)
    return folder / f"{op}-{implementation}-{key[:16]}.json"
