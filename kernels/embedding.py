"""Table look-up in the compute dtype whose gradient is summed in float32 and bit-identical from run to run.

Left to Inductor, the backward becomes float32 atomic adds (torch 2.13, CPU and CUDA): their order, and so
the bits of the gradient, change from run to run. As one opaque op it is ATen's sorted segment sum instead.

Shapes: B batch, T tokens, N tokens in all, V vocabulary, D width, C some of its columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from kernels.arguments import require_device, require_dtype, require_ids, require_shape
from kernels.counting import ran
from kernels.reference import accumulation_dtype

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ID_DTYPES = (torch.int64, torch.int32)
COLUMNS_AT_ONCE = 64  # of a table in another dtype than its sum: 8 MB of sums at V = 32768, not all of them


def require_embedding_arguments(
    weight_VD: Tensor,
    tokens_BT: Tensor,
    dtype: torch.dtype,
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
) -> None:
    """Raise TypeError or ValueError, naming the argument, unless rows can be looked up; ids are not read."""
    require_dtype("weight_VD", weight_VD, dtypes)
    require_shape("weight_VD", weight_VD, (None, None))
    require_dtype("tokens_BT", tokens_BT, ID_DTYPES)
    require_device("tokens_BT", tokens_BT, weight_VD)
    if dtype not in dtypes:
        raise TypeError(f"dtype: {dtype}, expected one of {', '.join(map(str, dtypes))}")


@library.custom_op("speedrun::embedding", mutates_args=())
def _embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    ran("embedding", "sorted")
    require_ids("tokens_BT", tokens_BT, weight_VD.shape[0])
    rows_ND = weight_VD.index_select(0, tokens_BT.reshape(-1)).to(dtype)
    return rows_ND.view(*tokens_BT.shape, weight_VD.shape[1])


@_embedding.register_fake
def _(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    return weight_VD.new_empty((*tokens_BT.shape, weight_VD.shape[1]), dtype=dtype)


@library.custom_op("speedrun::embedding_gradient", mutates_args=())
def sum_rows(rows_BTD: Tensor, ids_BT: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """The sum of the rows of every id, [num_rows, D] in `dtype`; summed in float32 at least."""
    accumulated = accumulation_dtype(rows_BTD)
    rows_ND, ids_N = rows_BTD.reshape(-1, rows_BTD.shape[-1]), ids_BT.reshape(-1)
    if dtype == accumulated:
        return _sum(rows_ND.to(accumulated), ids_N, num_rows)
    sum_VD = rows_ND.new_empty((num_rows, rows_ND.shape[1]), dtype=dtype)
    for first in range(0, rows_ND.shape[1], COLUMNS_AT_ONCE):
        columns = slice(first, first + COLUMNS_AT_ONCE)
        sum_VD[:, columns] = _sum(rows_ND[:, columns].to(accumulated), ids_N, num_rows)
    return sum_VD


def _sum(rows_ND: Tensor, ids_N: Tensor, num_rows: int) -> Tensor:
    sum_VD: Tensor = torch.ops.aten.embedding_dense_backward(rows_ND, ids_N, num_rows, -1, False)
    return sum_VD


@sum_rows.register_fake
def _(rows_BTD: Tensor, ids_BT: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    return rows_BTD.new_empty((num_rows, rows_BTD.shape[-1]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight_VD, tokens_BT, _ = inputs
    ctx.save_for_backward(tokens_BT)
    ctx.num_rows, ctx.dtype = weight_VD.shape[0], weight_VD.dtype


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
    (tokens_BT,) = ctx.saved_tensors
    return sum_rows(grad_BTD, tokens_BT, ctx.num_rows, ctx.dtype), None, None


_embedding.register_autograd(_backward, setup_context=_setup_context)


def embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `tokens_BT` of a table as [B, T, D] in `dtype`; reference: `reference.embedding`.

    Args:
        tokens_BT: ids of any shape; one outside the table stops the run.
    """
    require_embedding_arguments(weight_VD, tokens_BT, dtype)
    rows_BTD: Tensor = _embedding(weight_VD, tokens_BT, dtype)
    return rows_BTD
