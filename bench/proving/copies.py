"""Copies of an argument that keep its layout and its fence, and whether the fence held."""

from __future__ import annotations

import torch
from torch import Tensor


def twin(tensor: Tensor) -> Tensor:
    """A copy with the same strides in a storage of its own, what lies around the elements included."""
    return _storage(tensor).clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """The tensor's numbers times a factor, with the same strides.

    `factor * tensor` of an expanded or padded tensor is dense, and a BLAS sums dense rows in another order:
    two calls that should agree bit for bit would not.
    """
    return (_storage(tensor) * factor).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def require_intact_fence(changed: Tensor, before: Tensor) -> None:
    """Assert that of the storage behind `changed`, a twin of `before`, only the tensor's elements changed."""
    outside, original = _storage(changed).clone(), _storage(before).clone()
    for storage in (outside, original):
        storage.as_strided(before.shape, before.stride(), before.storage_offset()).zero_()
    assert torch.equal(outside.nan_to_num(), original.nan_to_num()), "wrote outside of its argument"
    assert torch.equal(outside.isnan(), original.isnan()), "wrote outside of its argument"


def _storage(tensor: Tensor) -> Tensor:
    """The whole storage behind a tensor, flat."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size,), (1,), 0)
