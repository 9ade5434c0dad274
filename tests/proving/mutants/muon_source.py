"""Mutants of the Triton kernels whose module or function is not called like their op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from tests.proving.mutants.source import _module


def mutated(module: str, function: str, right: str, wrong: str) -> Callable[..., Any]:
    """`kernels.triton_ops.MODULE.FUNCTION` with one passage replaced; float64 goes to the reference."""

    def mutant(*arguments: Any, **options: Any) -> Any:
        tensors = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
        if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tensors):
            return getattr(reference, function)(*arguments, **options)
        return getattr(_module(module, right, wrong), function)(*arguments, **options)

    return mutant
