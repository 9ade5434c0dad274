"""Runs the properties of ops on a device and writes down what came of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

import torch

from bench.errors import ProofFailed
from bench.host.facts import MachineFacts
from bench.proving.proof import SCHEMA, Proof, needed_versions
from bench.proving.properties.table import properties_of
from bench.proving.property import check
from bench.proving.subject import Subject, subject


def prove(
    op: str, implementation: str, facts: MachineFacts, sources_sha256: str, num_examples: int, seed: int = 0
) -> Proof:
    """Check every property of an op on this machine's device.

    Args:
        num_examples: of each property.
        seed: of hypothesis' choice of examples.

    Raises:
        ProofFailed: naming the property; its cause holds the smallest example found.
    """
    proved = subject(op, implementation, torch.device(facts.device_kind))
    ratios = {
        prop.__name__: _check(prop, proved, facts.device_kind, num_examples, seed)
        for prop in properties_of(op)
    }
    return Proof(
        schema=SCHEMA,
        op=op,
        implementation=implementation,
        sources_sha256=sources_sha256,
        device_name=facts.device_name,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in proved.dtypes),
        versions=needed_versions(implementation, facts.versions),
        num_examples=num_examples,
        seed=seed,
        worst_error_ratios=ratios,
    )


def prove_all(
    kernels: Sequence[tuple[str, str]],
    facts: MachineFacts,
    sources_sha256: str,
    num_examples: int,
    seed: int = 0,
    on_proof: Callable[[Proof], None] | None = None,
) -> list[Proof]:
    """Proofs of these (op, implementation) pairs, each told to `on_proof` as soon as it is made."""
    proofs = []
    for op, implementation in kernels:
        proofs.append(prove(op, implementation, facts, sources_sha256, num_examples, seed))
        if on_proof is not None:
            on_proof(proofs[-1])
    return proofs


def _check(
    prop: Callable[..., float], proved: Subject, device_kind: str, num_examples: int, seed: int
) -> float:
    try:
        return check(prop, proved, num_examples, seed)
    except Exception as error:  # a broken kernel raises whatever it likes, and each of it is a refutation
        what = traceback.format_exception_only(error)[0].strip().splitlines()[0]
        raise ProofFailed(
            f"{proved.op}/{proved.implementation} on {device_kind}: {prop.__name__}: {what}",
            f"`bench prove --kernel {proved.op} --debug` shows the smallest example",
        ) from error
