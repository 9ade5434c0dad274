"""Table look-up and cast in one pass, and its gradient as a segment sum over sorted ids, without atomics.

Rows of one id are summed in float32 from whatever dtype they have. The ids are sorted once, stably; a
program takes BLOCK_N neighbours in that order and sums equal ids by a product with the 0/1 matrix of "same
id". An id whose run ends inside the block is then done. What of a run lies in several blocks is left as one
partial sum a block, and a second kernel adds a run's partials in their order: the same bits every time, and
no program walks through all the rows of a frequent token. An infinite gradient makes NaN of its block's
rows, not only its own.

Shapes: N tokens, V rows of the table, D width, P programs (blocks of the sorted order).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.arguments import require_ids
from kernels.counting import ran
from kernels.embedding import require_embedding_arguments
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.float32, torch.bfloat16)
# (BLOCK_N, BLOCK_D, warps), by the lowest architecture; 0 is the interpreter.
_LOOK_UP = {0: (32, 64, 4), 80: (8, 256, 4)}
_SUM_BFLOAT16 = {0: (32, 64, 4), 80: (64, 64, 4)}
_SUM_FLOAT32 = {0: (32, 64, 4), 80: (32, 64, 8)}  # its product runs on the vector units, from registers


def config(table: dict[int, tuple[int, int, int]], arch: int) -> Config:
    """The launch of the architecture, from a table by the lowest one that an entry is for."""
    block_N, block_D, warps = table[max(known for known in table if known <= arch)]
    return Config({"BLOCK_N": block_N, "BLOCK_D": block_D}, warps)


@triton.jit
def _look_up_kernel(
    weight_ptr, ids_ptr, rows_ptr, num_ids, width, weight_row, weight_column,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    positions_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    ids_N = tl.load(ids_ptr + positions_N, mask=positions_N < num_ids, other=0).to(tl.int64)
    mask_ND = (positions_N[:, None] < num_ids) & (columns_1D < width)
    rows_ND = tl.load(
        weight_ptr + ids_N[:, None] * weight_row + columns_1D * weight_column, mask=mask_ND, other=0.0
    )
    rows_ND = rows_ND.to(rows_ptr.dtype.element_ty)
    tl.store(rows_ptr + positions_N[:, None] * width + columns_1D, rows_ND, mask=mask_ND)


@triton.jit
def _sum_kernel(
    rows_ptr, ids_ptr, order_ptr, sums_ptr, partials_ptr, num_ids, width, rows_row, rows_column,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    first, last = block * BLOCK_N, tl.minimum(block * BLOCK_N + BLOCK_N, num_ids)
    positions_N = first + tl.arange(0, BLOCK_N)
    columns_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    mask_N, mask_1D = positions_N < num_ids, columns_1D < width
    ids_N = tl.load(ids_ptr + positions_N, mask=mask_N, other=-1).to(tl.int64)
    order_N1 = tl.load(order_ptr + positions_N, mask=mask_N, other=0).to(tl.int64)[:, None]
    rows_ND = tl.load(
        rows_ptr + order_N1 * rows_row + columns_1D * rows_column, mask=mask_N[:, None] & mask_1D, other=0.0
    )
    same_NN = (ids_N[:, None] == ids_N[None, :]).to(rows_ND.dtype)
    sums_ND = tl.dot(same_NN, rows_ND, input_precision="ieee")
    before_N = tl.load(ids_ptr + positions_N - 1, mask=mask_N & (positions_N > 0), other=-1).to(tl.int64)
    id_before = tl.load(ids_ptr + first - 1, mask=first > 0, other=-1).to(tl.int64)
    id_after = tl.load(ids_ptr + last, mask=last < num_ids, other=-1).to(tl.int64)
    # Every row now holds the sum of its id; the first row of a run speaks for it.
    starts_N = mask_N & (ids_N != before_N)
    whole_N = starts_N & (ids_N != id_after)
    tl.store(sums_ptr + ids_N[:, None] * width + columns_1D, sums_ND, mask=whole_N[:, None] & mask_1D)
    # Partials [P, 2, D]: of the run that came from the block before, and of the one that begins here and
    # goes on.
    partials = partials_ptr + block * 2 * width + columns_1D
    came_N = mask_N & (positions_N == first) & (ids_N == id_before)
    goes_N = starts_N & (ids_N == id_after)
    tl.store(partials + tl.zeros_like(order_N1), sums_ND, mask=came_N[:, None] & mask_1D)
    tl.store(partials + width + tl.zeros_like(order_N1), sums_ND, mask=goes_N[:, None] & mask_1D)


@triton.jit
def _join_kernel(
    ids_ptr, sums_ptr, partials_ptr, num_ids, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    columns_D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    mask_D = columns_D < width
    first, following = block * BLOCK_N, block * BLOCK_N + BLOCK_N
    mine = tl.load(ids_ptr + following - 1, mask=following < num_ids, other=-1).to(tl.int64)
    next_id = tl.load(ids_ptr + following, mask=following < num_ids, other=-2).to(tl.int64)
    id_before = tl.load(ids_ptr + first - 1, mask=first > 0, other=-3).to(tl.int64)
    if (mine == next_id) & (mine != id_before):  # the block's last run begins in it and goes on
        sum_D = tl.load(partials_ptr + (2 * block + 1) * width + columns_D, mask=mask_D, other=0.0)
        while next_id == mine:
            block += 1
            sum_D += tl.load(partials_ptr + 2 * block * width + columns_D, mask=mask_D, other=0.0)
            following += BLOCK_N
            next_id = tl.load(ids_ptr + following, mask=following < num_ids, other=-2).to(tl.int64)
        tl.store(sums_ptr + mine * width + columns_D, sum_D, mask=mask_D)


def sum_rows(rows_ND: Tensor, ids_N: Tensor, num_rows: int) -> Tensor:
    """The float32 sum of the rows of every id, [num_rows, D]; for the body of a custom op."""
    N, D = rows_ND.shape
    sums_VD = rows_ND.new_zeros((num_rows, D), dtype=torch.float32)
    sorted_N, order_N = torch.sort(ids_N, stable=True)
    table = _SUM_FLOAT32 if rows_ND.dtype == torch.float32 else _SUM_BFLOAT16
    launched = config(table, architecture(rows_ND.device))
    num_blocks = triton.cdiv(N, launched.blocks["BLOCK_N"])
    grid = (num_blocks, triton.cdiv(D, launched.blocks["BLOCK_D"]))
    partials_P2D = rows_ND.new_empty((num_blocks, 2, D), dtype=torch.float32)
    tensors = (rows_ND, sorted_N, order_N, sums_VD, partials_P2D)
    launch(_sum_kernel, grid, (*tensors, N, D, *rows_ND.stride()), (3, 4), launched)
    launch(_join_kernel, grid, (sorted_N, sums_VD, partials_P2D, N, D), (1,), launched)
    return sums_VD


@library.custom_op("speedrun::triton_embedding", mutates_args=())
def _embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    ran("embedding", "triton")
    require_ids("tokens_BT", tokens_BT, weight_VD.shape[0])
    ids_N, D = tokens_BT.reshape(-1).contiguous(), weight_VD.shape[1]
    rows_BTD = weight_VD.new_empty((*tokens_BT.shape, D), dtype=dtype)
    launched = config(_LOOK_UP, architecture(weight_VD.device))
    blocks = launched.blocks
    grid = (triton.cdiv(ids_N.numel(), blocks["BLOCK_N"]), triton.cdiv(D, blocks["BLOCK_D"]))
    arguments = (weight_VD, ids_N, rows_BTD, ids_N.numel(), D, *weight_VD.stride())
    launch(_look_up_kernel, grid, arguments, (2,), launched)
    return rows_BTD


@_embedding.register_fake
def _(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    return weight_VD.new_empty((*tokens_BT.shape, weight_VD.shape[1]), dtype=dtype)


@library.custom_op("speedrun::triton_embedding_gradient", mutates_args=())
def _gradient(grad_BTD: Tensor, tokens_BT: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    return sum_rows(grad_BTD.reshape(-1, grad_BTD.shape[-1]), tokens_BT.reshape(-1), num_rows).to(dtype)


@_gradient.register_fake
def _(grad_BTD: Tensor, tokens_BT: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    return grad_BTD.new_empty((num_rows, grad_BTD.shape[-1]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight_VD, tokens_BT, _ = inputs
    ctx.save_for_backward(tokens_BT)
    ctx.num_rows, ctx.dtype = weight_VD.shape[0], weight_VD.dtype


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
    (tokens_BT,) = ctx.saved_tensors
    return _gradient(grad_BTD, tokens_BT, ctx.num_rows, ctx.dtype), None, None


_embedding.register_autograd(_backward, setup_context=_setup_context)


def embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `tokens_BT` of a table as [B, T, D] in `dtype`; reference: `reference.embedding`.

    Args:
        weight_VD: of any strides, float32 or bfloat16.
        tokens_BT: ids of any shape; one outside the table stops the run.
    """
    require_embedding_arguments(weight_VD, tokens_BT, dtype, DTYPES)
    rows_BTD: Tensor = _embedding(weight_VD, tokens_BT, dtype)
    return rows_BTD


def specimens(arch: int) -> list[Specimen]:
    """The look-up into bf16, and the two stages of the sum of bf16 and of float32 rows."""
    sizes = dict.fromkeys(("num_ids", "width", "weight_row", "rows_row"), "i32")
    pointers = {"weight_ptr": "*fp32", "ids_ptr": "*i64", "order_ptr": "*i64", "sums_ptr": "*fp32"}
    types = sizes | pointers | {"partials_ptr": "*fp32"}
    made = []
    for kernel, table, rows in (
        (_look_up_kernel, _LOOK_UP, "*bf16"),
        (_sum_kernel, _SUM_BFLOAT16, "*bf16"),
        (_sum_kernel, _SUM_FLOAT32, "*fp32"),
        (_join_kernel, _SUM_BFLOAT16, "*fp32"),
    ):
        launched = config(table, arch)
        constants = {name: 1 for name in kernel.arg_names if name.endswith("_column")}
        free = [name for name in kernel.arg_names if name not in constants | launched.blocks]
        signature = {name: (types | {"rows_ptr": rows})[name] for name in free}
        multiplies = kernel is _sum_kernel and rows == "*bf16"
        made.append(Specimen(kernel, signature, constants, launched, tuple(free), multiplies))
    return made
