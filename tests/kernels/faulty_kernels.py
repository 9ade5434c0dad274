"""Kernels that fail in the three ways the cubin gate knows, and one that does not. Compiled, never run."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kernels.triton_ops.launch import Config, Specimen


@triton.jit
def softmax(x_ptr, y_ptr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i * DEPTH).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + i, e / tl.sum(e, 0))


@triton.jit
def product(x_ptr, y_ptr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i, k = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    x = tl.load(x_ptr + i[:, None] * DEPTH + k[None, :])
    tl.store(y_ptr + i[:, None] * BLOCK + i[None, :], tl.dot(x, tl.trans(x), input_precision="ieee"))


def specimens(arch: int) -> list[Specimen]:
    """A row too wide for its registers, a tile too large, a product on plain cores, and a good one."""
    return [
        _specimen(softmax, "bf16", 16384, 1),
        _specimen(product, "bf16", 128, 1024),
        _specimen(product, "fp32", 32, 32),
        _specimen(product, "bf16", 64, 64),
    ]


def _specimen(kernel: Any, dtype: str, block: int, depth: int) -> Specimen:
    pointers = {"x_ptr": f"*{dtype}", "y_ptr": "*fp32"}
    return Specimen(
        kernel,
        pointers,
        {"DEPTH": depth},
        Config({"BLOCK": block}, num_warps=2),
        ("x_ptr", "y_ptr"),
        kernel is product,
    )
