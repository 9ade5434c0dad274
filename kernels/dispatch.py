"""Which implementation serves each op on a device, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from kernels import reference
from kernels.embedding import embedding
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.relu_squared import relu_squared
from kernels.sliding_window_attention import sliding_window_attention


class Kernels(NamedTuple):
    """The chosen functions, by op, as the model calls them."""

    embedding: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    relu_squared: Callable[[Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]
