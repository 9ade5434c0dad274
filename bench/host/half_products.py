"""Matrix products of 16-bit numbers on a processor without units for them: by its float32 ones.

torch leaves such products to plain loops of one thread. On an AVX2 processor (EPYC 7003, torch 2.13) one of
1024 x 1024 in bfloat16 ran at 0.8 GFLOP/s, in float32 at 68 a core; others saw a factor of 500 (pytorch issue
146508). bfloat16 numbers are float32 numbers: multiplied and added up in float32 and rounded once, the
result is what units for bfloat16 give, but for the order of the sum.

torch's dispatcher is told so for the whole process, so that eager, compiled and others' code gets these
products alike, the references that kernels are proved against included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, library

# What `@`, `F.linear`, einsum, their derivatives and compiled graphs come down to on a CPU.
OPS = ("mm", "bmm", "addmm", "baddbmm")
OVERLOADS = {name: (name, f"{name}.out") for name in OPS} | {
    name: (name, f"{name}.out", f"{name}_") for name in ("addmm", "baddbmm")
}
_SUPPORT = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def without_units() -> tuple[torch.dtype, ...]:
    """The 16-bit dtypes whose products this processor's library, oneDNN, does not take."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return tuple(_SUPPORT)
    return tuple(dtype for dtype, asks in _SUPPORT.items() if not getattr(torch.ops.mkldnn, asks)())


@cache
def multiply_in_float32(*dtypes: torch.dtype) -> tuple[library.Library, ...]:
    """From now on the CPU multiplies matrices of these dtypes in float32, each result rounded once.

    Returns what keeps it so; cached, so that it lasts as long as the process.
    """
    if not dtypes:
        return ()
    registry = library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for name, overloads in OVERLOADS.items():
            for overload in overloads:
                kernel = _kernel(name, overload, dtypes)
                registry.impl(overload, kernel, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return (registry,)


def _kernel(name: str, overload: str, dtypes: tuple[torch.dtype, ...]) -> Callable[..., Tensor]:
    """The op's CPU kernel: torch's own for all dtypes but these."""
    theirs = library.get_kernel(f"aten::{overload}", "CPU")
    packet = getattr(torch.ops.aten, name)

    def product(keys: Any, *tensors: Tensor, out: Tensor | None = None, **scales: float) -> Tensor:
        if any(tensor.dtype not in dtypes for tensor in tensors):
            outputs = {} if out is None else {"out": out}
            result: Tensor = theirs.call_boxed(keys, *tensors, **scales, **outputs)
            return result
        widened = [tensor.float() for tensor in tensors]
        if out is not None:  # in its layout: a copy that transposes 4 million numbers takes 28 ms, else 0.7
            wide: Tensor = torch.empty_like(out, dtype=torch.float32)
            packet.out(*widened, **scales, out=wide)
            return out.resize_(wide.shape).copy_(wide)
        wide = packet.default(*widened, **scales)
        return tensors[0].copy_(wide) if overload.endswith("_") else wide.to(tensors[0].dtype)

    return product
