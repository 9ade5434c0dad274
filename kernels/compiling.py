"""Passes of an op that go through torch.compile, each compiled as few times as its shapes allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.cpp_batches import batch_cpp_kernels

# Inductor gives a pass as many threads as the sizes are worth that it is first compiled for: with a stack of
# gates (3 x 3 x 12) first, all of d6's matrices got one thread (Muon's direction 7.4 ms, with two 3.6).
LEAST_ELEMENTS = 2**15


def is_worth_compiling(*tensors: Tensor) -> bool:
    """Whether these are large enough for a compiled pass, and contiguous."""
    return all(x.numel() >= LEAST_ELEMENTS and x.is_contiguous() for x in tensors)


# A product and its sum are rounded once, as eager `lerp` and `add_` do. All that is compiled says so, since
# Inductor precompiles its headers once for each setting: 10 s of a first run on two cores, and 154 MB.
CONTRACTED: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}


def compiled_whole(
    function: Callable[..., Any], *, dynamic: bool, mode: str = "default"
) -> Callable[..., Any]:
    """The function or module as one graph, in one of torch.compile's modes."""
    from torch._inductor import list_mode_options

    batch_cpp_kernels()
    options = {**list_mode_options(mode), **CONTRACTED}
    return torch.compile(function, dynamic=dynamic, fullgraph=True, options=options)


@cache
def compiled_pass(function: Callable[..., Any], *, dynamic: bool = True) -> Callable[..., Any]:
    """The function compiled whole, once a process.

    Tensors come to it as if each owned its memory: of a view the compiler looks at what it is a view of,
    compiles again where that has another shape, and reasons about the sizes of both. Muon's passes at d4 took
    4.4 s of a warm start with three of six compiled twice; 1.4 to 1.8 since (AVX2, torch 2.13).
    What the function writes to does not count that: the caller says so by `increment_version`.

    Args:
        dynamic: one compilation for tensors of any size; numbers that change are best tensors too.
    """
    compiled = compiled_whole(function, dynamic=dynamic)
    return lambda *arguments: compiled(*(x.data if isinstance(x, Tensor) else x for x in arguments))
