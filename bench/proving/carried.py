"""An implementation on a device that its oracle cannot be on: MPS has no float64.

The properties draw, judge and keep their tensors on the CPU; each call carries its arguments over, whole
storages and strides, so that the implementation meets the fences and layouts that were drawn, and carries
back what it returns, the gradients, and what it changed, be it beside its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

HOME = torch.device("cpu")
# By bytes an element: NaN is equal to itself.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    flat = _flat(tensor)
    there = torch.empty(flat.shape, dtype=tensor.dtype, device=device).copy_(flat)
    return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _flat(tensor: Tensor) -> Tensor:
    """All of the tensor's storage, in its dtype."""
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((length,), (1,), 0)


def carried(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` of tensors on the CPU, computed on `device`, and so are its gradients."""

    @wraps(function)
    def there(*arguments: Any, **options: Any) -> Any:
        moved: dict[int, _Moved] = {}

        def carry(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = _Moved(tensor, _flat(tensor).clone(), _carry(tensor, device))
            return moved[id(tensor)].copy

        result = function(*_each(arguments, carry), **_each(options, carry))
        for each in moved.values():
            each.write_back()
        return _each(result, lambda made: _fetched(made, moved.values()))

    return there


class _Moved(NamedTuple):
    """An argument, its storage as it was sent, and the copy that the implementation was given."""

    tensor: Tensor
    sent: Tensor
    copy: Tensor

    def write_back(self) -> None:
        """Whatever was changed, in the argument and beside it; no more, for others may lie there."""
        found = _flat(self.copy).to(HOME)
        bits = _BITS[found.element_size()]
        changed = found.view(bits) != self.sent.view(bits)
        if changed.any():
            _flat(self.tensor)[changed] = found[changed]


def _fetched(made: Tensor, moved: Iterable[_Moved]) -> Tensor:
    """A result on the CPU; where it is an argument, or lies in one, the same of the argument there."""
    for each in moved:
        if made is each.copy:
            return each.tensor
        if made.numel() and made.untyped_storage().data_ptr() == each.copy.untyped_storage().data_ptr():
            return each.tensor.as_strided(made.shape, made.stride(), made.storage_offset())
    return _carry(made, HOME)


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
