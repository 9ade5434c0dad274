"""A hashed bigram embedding added to the residual stream, its table's gradient without atomic adds.

The sum is rounded once, to the dtype of x. As in kernels/embedding.py the table's gradient is a sorted
segment sum, bit-identical from run to run.

Shapes: B batch, T tokens, D width, R rows of the table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran
from kernels.embedding import FLOAT_DTYPES, ID_DTYPES, sum_rows
from kernels.reference import accumulation_dtype, bigram_rows


def require_bigram_arguments(
    x_BTD: Tensor,
    table_RD: Tensor,
    tokens_BT: Tensor,
    strength: Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
) -> None:
    """Raise TypeError or ValueError, naming the argument; ids are not read: a hash of any is in the table."""
    require_dtype("x_BTD", x_BTD, dtypes)
    require_shape("x_BTD", x_BTD, (None, None, None))
    B, T, D = x_BTD.shape
    require_dtype("table_RD", table_RD, dtypes)
    require_shape("table_RD", table_RD, (None, D))
    require(2 <= table_RD.shape[0] < 2**31, "table_RD", "fewer than 2 rows, or more than int32 counts")
    require_dtype("tokens_BT", tokens_BT, ID_DTYPES)
    require_shape("tokens_BT", tokens_BT, (B, T))
    require_dtype("strength", strength, tuple({torch.float32, accumulation_dtype(x_BTD)}))
    require_shape("strength", strength, ())
    for name, tensor in (("table_RD", table_RD), ("tokens_BT", tokens_BT), ("strength", strength)):
        require_device(name, tensor, x_BTD)


@library.custom_op("speedrun::bigram_residual", mutates_args=())
def _bigram_residual(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> Tensor:
    ran("bigram_residual", "sorted")
    dtype = accumulation_dtype(x_BTD)
    ids_N = bigram_rows(tokens_BT, table_RD.shape[0]).reshape(-1)
    rows_BTD = table_RD.index_select(0, ids_N).to(dtype).view(x_BTD.shape)
    return torch.add(x_BTD.to(dtype), rows_BTD.mul_(strength)).to(x_BTD.dtype).contiguous()


@_bigram_residual.register_fake
def _(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> Tensor:
    return x_BTD.new_empty(x_BTD.shape)


@library.custom_op("speedrun::bigram_residual_gradients", mutates_args=())
def _gradients(
    grad_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(grad_BTD)
    ids_BT = bigram_rows(tokens_BT, table_RD.shape[0])
    # Scaled before the sum: the rows of a batch are fewer than a table's.
    grad_table_RD = sum_rows(grad_BTD.to(dtype) * strength, ids_BT, table_RD.shape[0], dtype)
    rows_ND = table_RD.index_select(0, ids_BT.reshape(-1)).to(dtype)
    grad_strength = rows_ND.mul_(grad_BTD.reshape(rows_ND.shape)).sum()
    return grad_table_RD.to(table_RD.dtype), grad_strength.to(strength.dtype)


@_gradients.register_fake
def _(grad_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    return table_RD.new_empty(table_RD.shape), strength.new_empty(())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
    grad_table_RD, grad_strength = _gradients(grad_BTD, *ctx.saved_tensors)
    return grad_BTD, grad_table_RD, None, grad_strength


_bigram_residual.register_autograd(_backward, setup_context=_setup_context)


def bigram_residual(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> Tensor:
    """`x + strength * table[bigram_rows]` in the dtype of x; reference: `reference.bigram_residual`.

    Args:
        tokens_BT: int64 or int32 ids; what int32 does not hold wraps around.
        strength: a float32 tensor of no dimension.
    """
    require_bigram_arguments(x_BTD, table_RD, tokens_BT, strength)
    y_BTD: Tensor = _bigram_residual(x_BTD, table_RD, tokens_BT, strength)
    return y_BTD
