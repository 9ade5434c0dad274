"""A hashed bigram embedding added to the residual stream: hash, look-up and scaled add in one pass.

The forward leaves the hashed rows, one int32 a token, for the backward: the table's gradient is the segment
sum of kernels/triton_ops/embedding.py over them, the strength's the sum of every program's partial sum. No
atomics.

Shapes: B batch, T tokens, N = B*T, D width, R rows of the table, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.bigram_residual import require_bigram_arguments
from kernels.counting import ran
from kernels.reference import BIGRAM_CURRENT, BIGRAM_PREVIOUS
from kernels.triton_ops.embedding import DTYPES, config, sum_rows
from kernels.triton_ops.launch import Specimen, architecture, launch

# (BLOCK_N, BLOCK_D, warps), by the lowest architecture; 0 is the interpreter.
_BLOCKS = {0: (32, 64, 4), 80: (8, 256, 4)}


@triton.jit
def _forward_kernel(
    x_ptr, table_ptr, tokens_ptr, strength_ptr, y_ptr, hashed_ptr,
    num_tokens, row_length, width, num_rows,
    x_batch, x_token, x_column, table_row, table_column, tokens_batch, tokens_token,
    CURRENT: tl.constexpr, PREVIOUS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    positions_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_N = positions_N < num_tokens
    batch_N, place_N = positions_N // row_length, positions_N % row_length
    tokens = tokens_ptr + batch_N * tokens_batch + place_N * tokens_token
    current_N = tl.load(tokens, mask=mask_N, other=0).to(tl.int32)
    previous_N = tl.load(tokens - tokens_token, mask=mask_N & (place_N > 0), other=0).to(tl.int32)
    # int32 throughout, wrapping around; `%` has the sign of the dividend here, in torch that of the divisor.
    hashed_N = ((current_N * CURRENT) ^ (previous_N * PREVIOUS)) % (num_rows - 1)
    hashed_N = tl.where(hashed_N < 0, hashed_N + (num_rows - 1), hashed_N)
    hashed_N = tl.where(place_N > 0, hashed_N, num_rows - 1)
    tl.store(hashed_ptr + positions_N, hashed_N, mask=mask_N & (tl.program_id(1) == 0))
    columns_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    mask_ND = mask_N[:, None] & (columns_1D < width)
    table_rows = table_ptr + hashed_N.to(tl.int64)[:, None] * table_row
    rows_ND = tl.load(table_rows + columns_1D * table_column, mask=mask_ND, other=0.0).to(tl.float32)
    x_rows = x_ptr + (batch_N * x_batch + place_N * x_token)[:, None]
    x_ND = tl.load(x_rows + columns_1D * x_column, mask=mask_ND, other=0.0).to(tl.float32)
    y_ND = (x_ND + tl.load(strength_ptr) * rows_ND).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + positions_N[:, None] * width + columns_1D, y_ND, mask=mask_ND)


@triton.jit
def _strength_kernel(
    grad_ptr, table_ptr, hashed_ptr, partials_ptr,
    num_tokens, width, grad_row, grad_column, table_row, table_column,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    positions_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    mask_N = positions_N < num_tokens
    mask_ND = mask_N[:, None] & (columns_1D < width)
    hashed_N = tl.load(hashed_ptr + positions_N, mask=mask_N, other=0).to(tl.int64)
    table_rows, grad_rows = (
        table_ptr + hashed_N[:, None] * table_row,
        grad_ptr + positions_N[:, None] * grad_row,
    )
    rows_ND = tl.load(table_rows + columns_1D * table_column, mask=mask_ND, other=0.0).to(tl.float32)
    grad_ND = tl.load(grad_rows + columns_1D * grad_column, mask=mask_ND, other=0.0).to(tl.float32)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(partials_ptr + program, tl.sum(rows_ND * grad_ND))


@library.custom_op("speedrun::triton_bigram_residual", mutates_args=())
def _bigram_residual(
    x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum, and the row of the table of each token as int32 [B, T]."""
    ran("bigram_residual", "triton")
    (B, T, D), R = x_BTD.shape, table_RD.shape[0]
    y_BTD, hashed_BT = x_BTD.new_empty(x_BTD.shape), tokens_BT.new_empty((B, T), dtype=torch.int32)
    launched = config(_BLOCKS, architecture(x_BTD.device))
    grid = (triton.cdiv(B * T, launched.blocks["BLOCK_N"]), triton.cdiv(D, launched.blocks["BLOCK_D"]))
    tensors = (x_BTD, table_RD, tokens_BT, strength, y_BTD, hashed_BT)
    strides = (*x_BTD.stride(), *table_RD.stride(), *tokens_BT.stride())
    multipliers = {"CURRENT": BIGRAM_CURRENT, "PREVIOUS": BIGRAM_PREVIOUS}
    launch(_forward_kernel, grid, (*tensors, B * T, T, D, R, *strides), (4, 5), launched, **multipliers)
    return y_BTD, hashed_BT


@_bigram_residual.register_fake
def _(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    return x_BTD.new_empty(x_BTD.shape), tokens_BT.new_empty(tokens_BT.shape, dtype=torch.int32)


@library.custom_op("speedrun::triton_bigram_residual_gradients", mutates_args=())
def _gradients(
    grad_BTD: Tensor, table_RD: Tensor, hashed_BT: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    grad_ND, hashed_N = grad_BTD.reshape(-1, grad_BTD.shape[-1]), hashed_BT.reshape(-1)
    grad_table_RD = sum_rows(grad_ND, hashed_N, table_RD.shape[0]).mul_(strength)
    launched = config(_BLOCKS, architecture(grad_BTD.device))
    N, D = grad_ND.shape
    grid = (triton.cdiv(N, launched.blocks["BLOCK_N"]), triton.cdiv(D, launched.blocks["BLOCK_D"]))
    partials_P = grad_ND.new_empty(grid, dtype=torch.float32)
    arguments = (grad_ND, table_RD, hashed_N, partials_P, N, D, *grad_ND.stride(), *table_RD.stride())
    launch(_strength_kernel, grid, arguments, (3,), launched)
    return grad_table_RD.to(table_RD.dtype), partials_P.sum()


@_gradients.register_fake
def _(grad_BTD: Tensor, table_RD: Tensor, hashed_BT: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    return table_RD.new_empty(table_RD.shape), strength.new_empty(())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, table_RD, _, strength = inputs
    ctx.save_for_backward(table_RD, output[1], strength)


def _backward(ctx: Any, grad_BTD: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None, Tensor]:
    grad_table_RD, grad_strength = _gradients(grad_BTD, *ctx.saved_tensors)
    return grad_BTD, grad_table_RD, None, grad_strength


_bigram_residual.register_autograd(_backward, setup_context=_setup_context)


def bigram_residual(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> Tensor:
    """`x + strength * table[bigram_rows]` in the dtype of x; reference: `reference.bigram_residual`.

    Args:
        x_BTD, table_RD: of any strides, float32 or bfloat16 each.
        tokens_BT: int64 or int32 ids; what int32 does not hold wraps around.
        strength: a float32 tensor of no dimension.
    """
    require_bigram_arguments(x_BTD, table_RD, tokens_BT, strength, DTYPES)
    y_BTD: Tensor = _bigram_residual(x_BTD, table_RD, tokens_BT, strength)[0]
    return y_BTD


def specimens(arch: int) -> list[Specimen]:
    """Both kernels on a bf16 stream, the table in float32."""
    floats = {"table_ptr": "*fp32", "strength_ptr": "*fp32", "partials_ptr": "*fp32"}
    pointers = {name: "*bf16" for name in ("x_ptr", "y_ptr", "grad_ptr")}
    types = floats | pointers | {"tokens_ptr": "*i64", "hashed_ptr": "*i32"}
    launched, made = config(_BLOCKS, arch), []
    for kernel in (_forward_kernel, _strength_kernel):
        ones = ("x_column", "table_column", "grad_column", "tokens_token")
        constants = {name: 1 for name in ones if name in kernel.arg_names}
        if kernel is _forward_kernel:
            constants |= {"CURRENT": BIGRAM_CURRENT, "PREVIOUS": BIGRAM_PREVIOUS}
        free = [name for name in kernel.arg_names if name not in constants | launched.blocks]
        signature = {name: types.get(name, "i32") for name in free}
        made.append(Specimen(kernel, signature, constants, launched, tuple(free), False))
    return made
