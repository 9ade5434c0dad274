"""How every Triton kernel is launched: on CUDA as it is, on the CPU in the interpreter without its faults.

The interpreter (TRITON_INTERPRET=1, set before triton is imported) multiplies the raw bits of bf16 in
`tl.dot` and truncates bf16 stores (triton 3.6 to 3.9; triton issue 11584). So there a launch widens bf16
tensors to float32, which is exact, runs the kernel on those, and lets torch round what it wrote. A kernel
must therefore take its element types from its pointers, and never name bf16.

Kernels are launched with explicit, pinned configurations: autotuning needs a driver, would run inside the
timed window and changes the order of reductions between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Config(NamedTuple):
    """How a kernel is launched: its constexpr block sizes, warps and pipeline stages."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2


class Specimen(NamedTuple):
    """One kernel as it is launched for a dtype and architecture, to be compiled without a GPU.

    `signature` maps every argument that is no constexpr to its type ("*bf16", "i32", "fp32"); `constants` are
    the constexprs but the config's blocks. Those in `aligned` are divisible by 16, as torch's pointers are.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    config: Config
    aligned: tuple[str, ...]
    uses_matrix_units: bool


def architecture(device: torch.device) -> int:
    """10 x major + minor of the compute capability; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Sequence[Any],
    written: Sequence[int],
    config: Config,
    **constants: Any,
) -> None:
    """Run a kernel over the grid.

    Args:
        arguments: the kernel's positional arguments; tensors, ints and floats.
        written: positions of the tensors that the kernel writes.
        constants: constexprs besides the config's blocks.
    """
    if 0 in grid:
        return
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    named = constants | config.blocks | options
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if all(tensor.is_cuda for tensor in tensors):
        kernel[grid](*arguments, **named)
        return
    require_interpreter()
    widened = [_widened(each) if isinstance(each, Tensor) else each for each in arguments]
    kernel[grid](*widened, **named)
    for position in written:
        if widened[position] is not arguments[position]:
            arguments[position].copy_(widened[position])


def require_interpreter() -> None:
    """Raise RuntimeError where a kernel is asked to run on the CPU without the interpreter."""
    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton kernels run on CUDA; on the CPU only with TRITON_INTERPRET=1 set at the start"
        )


def _widened(tensor: Tensor) -> Tensor:
    """A bf16 tensor as float32 of the same strides, views that repeat elements included; others unchanged."""
    if tensor.dtype != torch.bfloat16:
        return tensor
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((max(extent, 0) if tensor.numel() else 0,), (1,)).float()
    return flat.as_strided(tensor.shape, tensor.stride())
