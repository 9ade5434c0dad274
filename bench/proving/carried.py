"""An implementation on a device that its oracle cannot be on: MPS has no float64.

The properties draw, judge and keep their tensors on the CPU; each call carries its arguments over, whole
storages and strides, so that the implementation meets the fences and layouts that were drawn, and carries
back what it returns, the gradients, and what it changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

HOME = torch.device("cpu")


class _Carry(torch.autograd.Function):
    """A tensor on another device, with everything around it in its storage; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.home = tensor.device
        return _with_surroundings(tensor, device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _with_surroundings(grad, ctx.home), None


def _with_surroundings(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of the tensor's storage on the device, seen as the tensor sees it: no cast, no new layout."""
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = tensor.detach().as_strided((length,), (1,), 0)
    there = torch.empty(length, dtype=tensor.dtype, device=device).copy_(flat)
    return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def carried(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` of tensors on the CPU, computed on `device`, and so are its gradients."""

    @wraps(function)
    def there(*arguments: Any, **options: Any) -> Any:
        moved: dict[int, tuple[Tensor, Tensor]] = {}

        def carry(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = (tensor, _carry(tensor, device))
            return moved[id(tensor)][1]

        result = function(*_each(arguments, carry), **_each(options, carry))
        with torch.no_grad():
            for tensor, copy in moved.values():  # torch's fused AdamW leaves the version as it was
                if not torch.equal(back := copy.to(tensor.device), tensor):
                    tensor.copy_(back)
        given = {id(copy): tensor for tensor, copy in moved.values()}
        return _each(result, lambda made: given[id(made)] if id(made) in given else _carry(made, HOME))

    return there


def _carry(tensor: Tensor, device: torch.device) -> Tensor:
    copy: Tensor = _Carry.apply(tensor, device)  # type: ignore[no-untyped-call]
    return copy


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dictionaries with every tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_each(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
