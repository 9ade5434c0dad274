"""Table look-up in the compute dtype whose gradient is float32 and bit-identical from run to run.

Left to Inductor, the backward becomes float32 atomic adds (torch 2.13, CPU and CUDA): their order, and so the
bits of the gradient, change from run to run. As one opaque op it is ATen's sorted segment sum instead.

Shapes: B batch, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("speedrun::embedding", mutates_args=())
def _embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    rows_ND = weight_VD.index_select(0, tokens_BT.reshape(-1)).to(dtype)
    return rows_ND.view(*tokens_BT.shape, weight_VD.shape[1])


@_embedding.register_fake
def _(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    return weight_VD.new_empty((*tokens_BT.shape, weight_VD.shape[1]), dtype=dtype)


@torch.library.custom_op("speedrun::embedding_gradient", mutates_args=())
def _embedding_gradient(grad_BTD: Tensor, tokens_BT: Tensor, num_rows: int) -> Tensor:
    grad_ND = grad_BTD.float().reshape(-1, grad_BTD.shape[-1])
    tokens_N = tokens_BT.reshape(-1)
    grad_VD: Tensor = torch.ops.aten.embedding_dense_backward(grad_ND, tokens_N, num_rows, -1, False)
    return grad_VD


@_embedding_gradient.register_fake
def _(grad_BTD: Tensor, tokens_BT: Tensor, num_rows: int) -> Tensor:
    return grad_BTD.new_empty((num_rows, grad_BTD.shape[-1]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight_VD, tokens_BT, _ = inputs
    ctx.save_for_backward(tokens_BT)
    ctx.num_rows = weight_VD.shape[0]


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
    (tokens_BT,) = ctx.saved_tensors
    return _embedding_gradient(grad_BTD, tokens_BT, ctx.num_rows), None, None


_embedding.register_autograd(_backward, setup_context=_setup_context)


def embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `tokens_BT` of a float32 table as [B, T, D] in `dtype`; reference: `reference.embedding`."""
    rows_BTD: Tensor = _embedding(weight_VD, tokens_BT, dtype)
    return rows_BTD
