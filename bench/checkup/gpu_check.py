"""`bench gpu-check`: what a device's owner wants to know of the kernels on it, within a few minutes, as JSON.

Proofs of every kernel, the kernel table, and training with the chosen kernels beside training with the
references, compiled. Each file is written anew as each figure is known, so that a check cut short leaves what
it found. Needs no network: the text is the standard library's own sources.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.checkup.contest import Contender, Trial, contest, references, sentence
from bench.data.storage import write_atomic
from bench.errors import ProofFailed
from bench.host.device import Device, configure, open_device
from bench.host.facts import Kind, MachineFacts
from bench.proving.proof import LEAST_EXAMPLES, Proof
from bench.spec.model_table import Model
from bench.spec.recipe import Kernels
from bench.spec.workspace import Workspace
from kernels.bench import KernelTable, measure
from kernels.bench_cases import SHAPES, Shapes
from kernels.choices import IMPLEMENTATIONS, choose, provable

SEED = 1
# Shares of the time at whose end proofs and the kernel table begin nothing more; training has the rest.
PROOFS_UNTIL, TABLE_UNTIL = 0.35, 0.65
STAGES = ("proofs", "kernels", "training")


class Extent(NamedTuple):
    """How much is measured."""

    shapes: Shapes
    trial: Trial
    num_examples: int = LEAST_EXAMPLES
    rounds: int = 7


# The reference's attention keeps T x T numbers: half the rows, which fit an H200 beside the others' weights.
D12 = Extent(
    shapes=SHAPES["d12"],
    trial=Trial(
        model=Model(depth=12),
        batch_tokens=2**19,
        contenders=(
            Contender("chosen kernels", Kernels(), 32),
            Contender("references", references(), 16),
            Contender("references, torch's flash attention", references(attention="varlen"), 32),
        ),
    ),
)
D4 = Extent(
    shapes=SHAPES["d4"],
    trial=Trial(
        model=Model(depth=4, sequence_length=512, vocab_size=8192, window_pattern="L"),
        batch_tokens=16 * 512,
        contenders=(Contender("chosen kernels", Kernels(), 16), Contender("references", references(), 16)),
    ),
)
EXTENTS: dict[Kind, Extent] = {"cuda": D12, "mps": D4, "cpu": D4}


class ProofsFound(msgspec.Struct, frozen=True, kw_only=True):
    """proofs.json: what holds, what does not and why, and what the time did not suffice for."""

    device: str
    proofs: tuple[Proof, ...] = ()
    failures: dict[str, str] = {}
    not_reached: tuple[str, ...] = ()


def gpu_check(
    space: Workspace,
    facts: MachineFacts,
    folder: Path,
    budget_s: float,
    extent: Extent | None = None,
    stages: tuple[str, ...] = STAGES,
) -> Iterator[Path]:
    """Measure this machine's device; yields each file when it is complete.

    Args:
        folder: for proofs.json, kernels.json and training.json.
        budget_s: seconds for all of it. What is under way when they end is finished.
        extent: default: the device's.
        stages: which of the three to do.
    """
    start = time.monotonic()
    extent = extent or EXTENTS[facts.device_kind]
    device = open_device(facts.device_kind)
    configure(device, cpu_cores=facts.cpu_cores)

    def left(share: float = 1.0) -> float:
        return share * budget_s - (time.monotonic() - start)

    if "proofs" in stages:
        path = folder / "proofs.json"
        check_proofs(space, facts, extent.num_examples, lambda: left(PROOFS_UNTIL) > 0, _writer(path))
        yield path
    if "kernels" in stages:
        path = folder / "kernels.json"
        check_kernels(device, facts, extent, left(TABLE_UNTIL), _writer(path))
        yield path
    if "training" in stages:
        path = folder / "training.json"
        contest(space, device, facts, extent.trial, left, _writer(path))
        yield path


def _writer(path: Path) -> Callable[[msgspec.Struct], None]:
    def write(value: msgspec.Struct) -> None:
        text = msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2)
        write_atomic(path, text + b"\n")

    return write


def check_proofs(
    space: Workspace,
    facts: MachineFacts,
    num_examples: int,
    has_time: Callable[[], bool],
    write: Callable[[ProofsFound], None],
) -> ProofsFound:
    """Prove every kernel that runs on the device, those that training would choose first."""
    from bench.proving.gate import sources_sha256
    from bench.proving.prove import prove  # loads hypothesis

    chosen = {(choice.op, choice.implementation) for choice in choose(facts.device_kind)}
    pairs = [(op, name) for op in IMPLEMENTATIONS for name in provable(op, facts.device_kind)]
    pairs.sort(key=lambda pair: pair not in chosen)  # stable: the order of the table else
    sources = sources_sha256(space.root)
    found = ProofsFound(device=facts.device_name, not_reached=tuple(f"{op}/{name}" for op, name in pairs))
    write(found)
    for op, name in pairs:
        if not has_time():
            break
        kernel, rest = f"{op}/{name}", found.not_reached[1:]
        try:
            proof = prove(op, name, facts, sources, num_examples)
        except (ProofFailed, ImportError, AttributeError) as error:  # wrong, or not there
            failures = found.failures | {kernel: sentence(error)}
            found = msgspec.structs.replace(found, failures=failures, not_reached=rest)
        else:
            found = msgspec.structs.replace(found, proofs=(*found.proofs, proof), not_reached=rest)
        write(found)
    return found


def check_kernels(
    device: Device,
    facts: MachineFacts,
    extent: Extent,
    budget_s: float,
    write: Callable[[KernelTable], None],
) -> KernelTable:
    """The kernel table of every op."""
    ops = tuple(IMPLEMENTATIONS)
    table = measure(
        device.torch_device,
        ops,
        extent.shapes,
        extent.rounds,
        facts.device_name,
        facts.versions,
        dtype=extent.trial.dtype,
        compiled=extent.trial.compiled,
        budget_s=budget_s,
        on_op=write,
    )
    write(table)
    return table
