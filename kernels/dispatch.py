"""The chosen implementations as the functions the model calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from kernels.choices import Choice
from kernels.embedding import embedding
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.relu_squared import relu_squared
from kernels.sliding_window_attention import sliding_window_attention


class Kernels(NamedTuple):
    """One function an op; signatures are those of `kernels.reference`."""

    embedding: Callable[..., Tensor]
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    relu_squared: Callable[[Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]


def full_or_blocked_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    """torch's own kernel where the window covers the row, query blocks where it does not."""
    if window < q_BTHK.shape[1] - 1:
        return sliding_window_attention(q_BTHK, k_BTGK, v_BTGK, window)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def bind(choices: tuple[Choice, ...], *, compiled: bool) -> Kernels:
    """The functions behind the choices.

    Args:
        compiled: whether the loss's pass over the logits goes through torch.compile.
    """
    attention = {choice.op: choice.implementation for choice in choices}["attention"]
    return Kernels(
        embedding=embedding,
        attention=sliding_window_attention if attention == "blocked" else full_or_blocked_attention,
        relu_squared=relu_squared,
        linear_cross_entropy=partial(linear_cross_entropy, compiled=compiled),
    )
