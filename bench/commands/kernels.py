"""Commands about kernels: prove, kernels, gpu-check."""

from __future__ import annotations

import argparse

from bench.commands.shared import before_torch, emit, workspace
from bench.errors import RecipeError
from kernels.choices import IMPLEMENTATIONS, provable


def prove(options: argparse.Namespace) -> None:
    """`bench prove`."""
    from bench.host.machine import detect
    from bench.proving.gate import keep, sources_sha256
    from bench.proving.proof import Proof
    from bench.proving.prove import prove_all

    space = workspace(options)
    facts = detect(options.device, environment=options.environment)
    pairs = _asked(options, facts.device_kind)

    def on_proof(proof: Proof) -> None:
        keep(space.proofs, proof, facts)
        if not options.json:
            worst = max(proof.worst_error_ratios, key=lambda name: proof.worst_error_ratios[name])
            closest = f"worst error {proof.worst_error_ratio:.2f} of its bound ({worst})"
            print(
                f"{proof.name:<32} {len(proof.worst_error_ratios):>2} properties hold, {closest}", flush=True
            )

    sources = sources_sha256(space.root)
    proofs = prove_all(pairs, facts, sources, options.examples, options.example_seed, on_proof)
    if options.json:
        emit(proofs)
    else:
        print(f"{len(proofs)} kernels proved on {facts.device_name}, {options.examples} examples a property")


def _asked(options: argparse.Namespace, device_kind: str) -> list[tuple[str, str]]:
    """(op, implementation) of everything to prove."""
    interpreted, name = options.environment.get("TRITON_INTERPRET") == "1", options.implementation
    ops = [options.kernel] if options.kernel else list(IMPLEMENTATIONS)
    runnable = [(op, each) for op in ops for each in provable(op, device_kind, interpreted)]
    pairs = [pair for pair in runnable if name in (None, pair[1])]
    if not pairs:
        hint = f"there are {', '.join(sorted({each for _, each in runnable}))}"
        raise RecipeError(f"--implementation {name}: nothing of that name to prove on {device_kind}", hint)
    return pairs


def kernels(options: argparse.Namespace) -> None:
    """`bench kernels`."""
    before_torch(options)
    from bench.host.device import configure, open_device
    from bench.host.machine import detect
    from kernels.bench import kernel_table, measure

    facts = detect(options.device, environment=options.environment)
    opened = open_device(facts.device_kind)
    configure(opened, cpu_cores=facts.cpu_cores, environment=options.environment)
    ops = [options.kernel] if options.kernel else list(IMPLEMENTATIONS)
    table = measure(
        opened.torch_device, ops, options.shapes, options.rounds, facts.device_name, facts.versions
    )
    if options.json:
        emit(table)
    else:
        print(kernel_table(table))


def gpu_check(options: argparse.Namespace) -> None:
    """`bench gpu-check`."""
    before_torch(options)
    from bench.checkup.gpu_check import gpu_check as check
    from bench.host.machine import detect

    facts = detect(options.device, environment=options.environment)
    for path in check(workspace(options), facts, options.out, options.seconds):
        print(path)
