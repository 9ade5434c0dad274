"""What an op demands of its arguments, said before anything is launched, with the argument's name.

Shapes, dtypes and devices are known while torch.compile traces: a compiled graph pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def require(condition: bool, argument: str, problem: str) -> None:
    """Raise ValueError "argument: problem" unless the condition holds."""
    if not condition:
        raise ValueError(f"{argument}: {problem}")


def require_dtype(argument: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless the tensor is of one of these dtypes."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{argument}: dtype {str(tensor.dtype).removeprefix('torch.')}, expected {names}")


def require_shape(argument: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """Raise ValueError unless the tensor has this shape; None stands for any size."""
    fits = tensor.ndim == len(shape) and all(
        want is None or size == want for size, want in zip(tensor.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{argument}: shape {list(tensor.shape)}, expected [{wanted}]")


def require_device(argument: str, tensor: Tensor, like: Tensor) -> None:
    """Raise ValueError unless both tensors lie on one device."""
    if tensor.device != like.device:
        raise ValueError(f"{argument}: on {tensor.device}, the first argument is on {like.device}")


def require_ids(argument: str, ids: Tensor, num_ids: int, *, ignored: int | None = None) -> None:
    """Stop the run unless every id is in [0, num_ids) or is the ignored one; the error names the argument.

    On CUDA the check is queued before the kernel and fails there: the host does not wait for the values.
    Call it where values exist: in the body of a custom op, not in traced code.
    """
    inside = (ids >= 0) & (ids < num_ids)
    if ignored is not None:
        inside |= ids == ignored
    message = f"{argument}: an id outside [0, {num_ids})"
    if ids.device.type == "mps":  # no asynchronous assertion there (torch 2.13)
        require(bool(inside.all()), argument, f"an id outside [0, {num_ids})")
    else:
        torch._assert_async(inside.all(), message)
