"""Compiles specimens of the kernels for an architecture, without its GPU, and reads what came of it.

Triton's interpreter takes the place of its compiler where TRITON_INTERPRET is set, so this needs a process
without it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton_ops.launch import Specimen

ARCHITECTURES = (80, 89, 90, 100)
# Most shared memory of one program in bytes, by architecture: what a program may ask for, 1 KiB less than the
# multiprocessor has (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
SHARED_LIMIT_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}
NOT_OPS = ("compile", "launch")  # modules of this package that hold no kernel
WARP_SIZE = 32
# Instructions of the matrix units in PTX: Ampere's and Ada's, Hopper's, Blackwell's.
_MATRIX_INSTRUCTION = re.compile(r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", re.MULTILINE)


class Compiled(NamedTuple):
    """What a program of the kernel takes, and how often its code multiplies on matrix units.

    `spill_bytes` is a thread's stack: Triton's kernels have no use of their own for one.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    num_matrix_instructions: int


class Compilation(NamedTuple):
    """One specimen compiled for one architecture."""

    kernel: str
    variant: str
    arch: int
    uses_matrix_units: bool
    compiled: Compiled


def kernel_modules() -> tuple[str, ...]:
    """The modules beside this one that hold kernels, by dotted name."""
    names = sorted(found.name for found in iter_modules([str(Path(__file__).parent)]))
    return tuple(f"{__package__}.{name}" for name in names if name not in NOT_OPS)


def compile_specimen(specimen: Specimen, arch: int) -> Compiled:
    """Compile for compute capability `arch` (10 x major + minor), as `launch` would.

    Raises:
        RuntimeError: under TRITON_INTERPRET, or where the signature does not fit the kernel.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are compiled only in a process without TRITON_INTERPRET")
    options = {
        "num_warps": specimen.config.num_warps,
        "num_stages": specimen.config.num_stages,
        "enable_fp_fusion": True,
    }
    made = triton.compile(_source(specimen), target=GPUTarget("cuda", arch, WARP_SIZE), options=options)
    registers, spill_bytes = _resources(made.asm["cubin"])
    return Compiled(
        registers, spill_bytes, made.metadata.shared, len(_MATRIX_INSTRUCTION.findall(made.asm["ptx"]))
    )


def compile_module(name: str, arch: int) -> Iterator[Compilation]:
    """Every specimen of a module such as the `kernel_modules`, compiled."""
    for specimen in import_module(name).specimens(arch):
        yield Compilation(
            kernel=specimen.kernel.__name__,
            variant=_variant(specimen),
            arch=arch,
            uses_matrix_units=specimen.uses_matrix_units,
            compiled=compile_specimen(specimen, arch),
        )


def faults(made: Compilation) -> Iterator[str]:
    """What keeps this kernel from being fast, or from running at all."""
    compiled, limit = made.compiled, SHARED_LIMIT_BYTES[made.arch]
    if compiled.spill_bytes:
        yield f"spills {compiled.spill_bytes} bytes a thread with {compiled.registers} registers"
    if compiled.shared_bytes > limit:
        yield f"{compiled.shared_bytes} bytes of shared memory, sm_{made.arch} has {limit}"
    if made.uses_matrix_units and not compiled.num_matrix_instructions:
        yield "no matrix instruction"


def _source(specimen: Specimen) -> ASTSource:
    names = specimen.kernel.arg_names
    constants: dict[str, Any] = specimen.constants | specimen.config.blocks
    wrong = sorted(set(names) ^ (specimen.signature.keys() | constants.keys()))
    if wrong:
        raise RuntimeError(f"{specimen.kernel.__name__}: specimen and kernel differ in {', '.join(wrong)}")
    signature = {name: "constexpr" if name in constants else specimen.signature[name] for name in names}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in specimen.aligned}
    return ASTSource(specimen.kernel, signature, constexprs, aligned)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread of the cubin's one kernel, as written into it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump names no registers: {said!r}")
    return int(found[1]), int(found[2])


def _variant(specimen: Specimen) -> str:
    """The element types and constants that tell specimens of one kernel apart."""
    types = sorted({kind.removeprefix("*") for kind in specimen.signature.values() if kind[0] == "*"})
    constants = specimen.constants | specimen.config.blocks
    return " ".join([*types, *(f"{name}={value}" for name, value in constants.items())])
