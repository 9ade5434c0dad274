"""What is being proved: one implementation of one op on one device, beside its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.proving.carried import HOME, carried
from kernels.dispatch import implementation

# The dtypes a property draws inputs from. float64 is where algebra can be told from rounding; Triton kernels
# compute in float32 and are not written for it.
TORCH_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
TRITON_DTYPES = (torch.float32, torch.bfloat16)
WIDE_DTYPES = (torch.float64, torch.float32)
HALF_DTYPES = (torch.bfloat16,)  # all that torch's flash attention takes, besides float16
# What serves runs in float16 (kernels.choices) and meets it.
IN_FLOAT16 = (
    ("embedding", "sorted"),
    ("attention", "blocked"),
    ("bigram_residual", "sorted"),
)


class Subject(NamedTuple):
    """`function` and `reference` have one signature (kernels/reference.py).

    `device` is where tensors are drawn and judged, and where the function runs unless it is carried.
    """

    op: str
    implementation: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    device: torch.device
    dtypes: tuple[torch.dtype, ...]


def subject(op: str, name: str, device: torch.device) -> Subject:
    """The implementation `name` of `op`, to be proved on `device`; carried to a device without float64."""
    dtypes = {"triton": TRITON_DTYPES, "sdpa": WIDE_DTYPES, "varlen": HALF_DTYPES}.get(name, TORCH_DTYPES)
    dtypes += (torch.float16,) if (op, name) in IN_FLOAT16 else ()
    function, reference = implementation(op, name), implementation(op, "reference")
    if device.type == "mps":
        narrow = tuple(dtype for dtype in dtypes if dtype != torch.float64)
        return Subject(op, name, carried(function, device), reference, HOME, narrow)
    return Subject(op, name, function, reference, device, dtypes)
