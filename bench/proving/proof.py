"""A proof: that an implementation met every property of its op on one device. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kernels.choices import REFERENCE

SCHEMA = 1
COMPILED = ("loss", "evaluation", "gradients", "muon")  # what is held to the references of what was compiled
COMPILERS = ("torch", "triton")  # the versions that decide about compiled code, where there are
LEAST_EXAMPLES = 20  # of each property, for a proof that lets a record in


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was proved, of what, where, and how closely."""

    schema: int
    op: str
    implementation: str
    sources_sha256: str  # of the kernels and of the properties
    device_name: str
    dtypes: tuple[str, ...]
    versions: dict[str, str]
    num_examples: int  # of each property
    seed: int
    worst_error_ratios: dict[str, float]  # by property: error over its bound, at most 1; 0 where exact

    @property
    def worst_error_ratio(self) -> float:
        """Of all properties."""
        return max(self.worst_error_ratios.values(), default=0.0)

    @property
    def name(self) -> str:
        """The kernel as people and records write it."""
        return f"{self.op}/{self.implementation}"


class CompiledProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That what a run has compiled computes what the references do, on the run's own shapes."""

    schema: int
    sources_sha256: str  # of the kernels, the properties, the model and its training
    compiled_sha256: str  # of what the plan says of model, micro-batch, precision and kernels
    device_name: str
    versions: dict[str, str]
    worst_error_ratios: dict[str, float]  # of each of `COMPILED`, at most 1


def needed_versions(implementation: str, versions: Mapping[str, str]) -> dict[str, str]:
    """The libraries that decide about an implementation's numbers besides its sources."""
    needed = ("torch", "triton") if implementation == "triton" else ("torch",)
    return {name: versions.get(name, "") for name in needed}


def proof_key(
    op: str, implementation: str, sources: str, device_name: str, versions: Mapping[str, str]
) -> str:
    """The key under which a proof is kept: all it depends on but the number of examples."""
    parts = [SCHEMA, op, implementation, sources, device_name, dict(versions)]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def problems_of_proofs(
    kernels: Sequence[Mapping[str, str]],
    proofs: Sequence[Proof],
    device_name: str,
    versions: Mapping[str, str],
) -> Iterator[str]:
    """What keeps these proofs from vouching for a run that used these kernels on this device."""
    found = {proof.name: proof for proof in proofs}
    for kernel in kernels:
        name = f"{kernel['op']}/{kernel['implementation']}"
        if kernel["implementation"] == REFERENCE:
            continue
        if name not in found:
            yield f"no proof of kernel {name}"
        else:
            yield from (f"proof of {name}: {fault}" for fault in _faults(found[name], device_name, versions))


def problems_of_compiled(
    proof: CompiledProof, device_name: str, versions: Mapping[str, str]
) -> Iterator[str]:
    """What keeps it from vouching for what a run on this device had compiled."""
    needed = {name: versions[name] for name in COMPILERS if name in versions}
    yield from _common_faults(proof, device_name, needed)
    yield from (f"it says nothing of {name}" for name in COMPILED if name not in proof.worst_error_ratios)


def _faults(proof: Proof, device_name: str, versions: Mapping[str, str]) -> Iterator[str]:
    yield from _common_faults(proof, device_name, needed_versions(proof.implementation, versions))
    if proof.num_examples < LEAST_EXAMPLES:
        yield f"{proof.num_examples} examples a property, at least {LEAST_EXAMPLES} are asked for"


def _common_faults(proof: Proof | CompiledProof, device_name: str, needed: dict[str, str]) -> Iterator[str]:
    if proof.schema != SCHEMA:
        yield f"schema {proof.schema}, this is {SCHEMA}"
    if proof.device_name != device_name:
        yield f"made on {proof.device_name}, the run was on {device_name}"
    if proof.versions != needed:
        yield f"made with {proof.versions}, the run had {needed}"
    if not proof.worst_error_ratios:
        yield "it names no property"
    for name, ratio in proof.worst_error_ratios.items():
        if not 0.0 <= ratio <= 1.0:
            yield f"{name} is {ratio:.3g} times its bound"
