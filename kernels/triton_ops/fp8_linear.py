"""A linear layer in fp8: quantisation in both orientations by Triton, the products by torch.

Every operand of the three products is wanted twice, its rows and its columns last in memory
(`kernels.fp8_linear`). One pass finds the largest magnitude of each tile; a small one reduces them to
multipliers, without atomics; a third reads the matrix once more and writes both copies of the codes.

Magnitudes are compared as the bits of their float32, where NaN is larger than infinity: a NaN is never lost.
The interpreter rounds fp8 wrongly (triton 3.6 to 3.9): there the third pass writes float32, and torch rounds.

Shapes: N rows, D inputs, O outputs; M x P a matrix, R tiles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.counting import ran
from kernels.fp8_linear import Operand, forward_product, gradient_products, require_fp8_linear
from kernels.reference import SMALLEST_FP8_AMAX
from kernels.reference_fp8 import FORWARD_DTYPE, GRADIENT_DTYPE
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

# One tile a program. The interpreter's cost is its programs.
_TILES = {
    0: Config({"BLOCK_M": 64, "BLOCK_P": 64}),
    80: Config({"BLOCK_M": 128, "BLOCK_P": 128}, num_warps=8),
}
# Reductions of one number for the matrix, and of one for each row.
_TO_ONE = Config({"BLOCK_R": 4096, "BLOCK_M": 1}, num_warps=8)
_TO_ROWS = Config({"BLOCK_R": 32, "BLOCK_M": 64})


@triton.jit
def magnitudes_kernel(
    x_ptr,
    row_bits_ptr,
    column_bits_ptr,
    num_rows,
    num_columns,
    stride_xm,
    stride_xp,
    ROWWISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The largest |x| of each tile as bits: [R], or of its rows [R, M] and its columns [R, P]."""
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    offsets = rows[:, None].to(tl.int64) * stride_xm + columns[None, :].to(tl.int64) * stride_xp
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if ROWWISE:
        row_bits = row_bits_ptr + column_tile.to(tl.int64) * num_rows + rows
        tl.store(row_bits, tl.max(bits, axis=1), mask=rows < num_rows)
        column_bits = column_bits_ptr + row_tile.to(tl.int64) * num_columns + columns
        tl.store(column_bits, tl.max(bits, axis=0), mask=columns < num_columns)
    else:
        tile = row_tile * tl.num_programs(1) + column_tile
        tl.store(row_bits_ptr + tile, tl.max(tl.max(bits, axis=1), axis=0))


@triton.jit
def multipliers_kernel(
    bits_ptr,
    multipliers_ptr,
    scales_ptr,
    num_tiles,
    num_rows,
    LARGEST_CODE: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """LARGEST_CODE / max |x| and its reciprocal for each row from the [R, M] bits of the tiles."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    largest = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.int32)
    for start in range(0, num_tiles, BLOCK_R):
        tiles = start + tl.arange(0, BLOCK_R)
        inside = (tiles[:, None] < num_tiles) & (rows[None, :] < num_rows)
        offsets = tiles[:, None].to(tl.int64) * num_rows + rows[None, :]
        largest = tl.maximum(largest, tl.load(bits_ptr + offsets, mask=inside, other=0))
    amax = tl.max(largest, axis=0).to(tl.float32, bitcast=True).to(tl.float64)
    # In float64 as the reference, whose roundings these are; twice rounded, a quotient of float32 numbers is
    # what one rounding makes of it.
    amax = tl.where(amax < SMALLEST, SMALLEST, amax)
    multiplier = (LARGEST_CODE / amax).to(tl.float32)
    tl.store(multipliers_ptr + rows, multiplier, mask=rows < num_rows)
    scale = (1.0 / multiplier.to(tl.float64)).to(tl.float32)
    tl.store(scales_ptr + rows, scale, mask=rows < num_rows)


@triton.jit
def _clamped(x, LARGEST_CODE: tl.constexpr):
    """To the codes' range, for e5m2 has an infinity to round to; comparisons keep NaN."""
    x = tl.where(x > LARGEST_CODE, LARGEST_CODE, x)
    return tl.where(x < -LARGEST_CODE, -LARGEST_CODE, x)


@triton.jit
def cast_kernel(
    x_ptr,
    row_multipliers_ptr,
    column_multipliers_ptr,
    codes_ptr,
    transposed_ptr,
    num_rows,
    num_columns,
    stride_xm,
    stride_xp,
    LARGEST_CODE: tl.constexpr,
    ROWWISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """x times its multipliers as codes [M, P], and times those of the columns as codes [P, M]."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    offsets = rows[:, None].to(tl.int64) * stride_xm + columns[None, :].to(tl.int64) * stride_xp
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if ROWWISE:
        of_rows = tl.load(row_multipliers_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        of_columns = tl.load(column_multipliers_ptr + columns, mask=columns < num_columns, other=0.0)[None, :]
    else:
        of_rows = tl.load(row_multipliers_ptr)
        of_columns = of_rows
    codes = _clamped(x * of_rows, LARGEST_CODE).to(codes_ptr.dtype.element_ty)
    codes_offsets = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    tl.store(codes_ptr + codes_offsets, codes, mask=inside)
    if ROWWISE:
        codes = _clamped(x * of_columns, LARGEST_CODE).to(codes_ptr.dtype.element_ty)
    transposed_offsets = columns[:, None].to(tl.int64) * num_rows + rows[None, :]
    transposed_inside = (columns[:, None] < num_columns) & (rows[None, :] < num_rows)
    tl.store(transposed_ptr + transposed_offsets, tl.trans(codes), mask=transposed_inside)


def _tiles(arch: int) -> Config:
    return _TILES[80 if arch else 0]


def _multipliers(bits_RM: Tensor, largest_code: float) -> tuple[Tensor, Tensor]:
    """(multipliers [M], scales [M]) from the tiles' magnitudes."""
    num_tiles, num_rows = bits_RM.shape
    multipliers_M, scales_M = (bits_RM.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    config = _TO_ONE if num_rows == 1 else _TO_ROWS
    grid = (triton.cdiv(num_rows, config.blocks["BLOCK_M"]),)
    constants = {"LARGEST_CODE": largest_code, "SMALLEST": SMALLEST_FP8_AMAX}
    arguments = (bits_RM, multipliers_M, scales_M, num_tiles, num_rows)
    launch(multipliers_kernel, grid, arguments, (1, 2), config, **constants)
    return multipliers_M, scales_M


def quantise(x_MP: Tensor, dtype: torch.dtype, rowwise: bool) -> Operand:
    """The matrix in fp8, in both orientations, as `kernels.fp8_linear.quantise`."""
    (num_rows, num_columns), largest_code = x_MP.shape, torch.finfo(dtype).max
    config = _tiles(architecture(x_MP.device))
    grid = (
        triton.cdiv(num_rows, config.blocks["BLOCK_M"]),
        triton.cdiv(num_columns, config.blocks["BLOCK_P"]),
    )
    shape = (num_rows, num_columns, *x_MP.stride())
    if rowwise:
        row_bits = x_MP.new_empty((grid[1], num_rows), dtype=torch.int32)
        column_bits = x_MP.new_empty((grid[0], num_columns), dtype=torch.int32)
    else:
        row_bits = column_bits = x_MP.new_empty((grid[0] * grid[1], 1), dtype=torch.int32)
    launch(magnitudes_kernel, grid, (x_MP, row_bits, column_bits, *shape), (1, 2), config, ROWWISE=rowwise)
    of_rows, row_scales = _multipliers(row_bits, largest_code)
    of_columns, column_scales = _multipliers(column_bits, largest_code) if rowwise else (of_rows, row_scales)
    written = dtype if x_MP.is_cuda else torch.float32
    codes_MP = x_MP.new_empty((num_rows, num_columns), dtype=written)
    codes_PM = x_MP.new_empty((num_columns, num_rows), dtype=written)
    arguments = (x_MP, of_rows, of_columns, codes_MP, codes_PM, *shape)
    launch(cast_kernel, grid, arguments, (3, 4), config, LARGEST_CODE=largest_code, ROWWISE=rowwise)
    ends = (-1, 1) if rowwise else ()
    return Operand(codes_MP.to(dtype), row_scales.view(ends), codes_PM.to(dtype), column_scales.view(ends))


@library.custom_op("speedrun::fp8_linear", mutates_args=())
def _fp8_linear(
    x_ND: Tensor, weight_OD: Tensor, rowwise: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(output, codes of x [D, N], their scale, codes of the weight [D, O], their scale), codes as bytes.

    As fp8 they would pass for numbers that gradients flow through.
    """
    ran("fp8_linear", "triton")
    x, weight = (quantise(each, FORWARD_DTYPE, rowwise) for each in (x_ND, weight_OD))
    out_NO = forward_product(x, weight, x_ND.dtype)
    x_DN, weight_DO = (each.codes_PM.view(torch.uint8) for each in (x, weight))
    return out_NO, x_DN, x.scale_P, weight_DO, weight.scale_P


@_fp8_linear.register_fake
def _(x_ND: Tensor, weight_OD: Tensor, rowwise: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (rows, inputs), outputs = x_ND.shape, weight_OD.shape[0]
    scale = (inputs, 1) if rowwise else ()
    return (
        x_ND.new_empty((rows, outputs)),
        x_ND.new_empty((inputs, rows), dtype=torch.uint8),
        x_ND.new_empty(scale, dtype=torch.float32),
        x_ND.new_empty((inputs, outputs), dtype=torch.uint8),
        x_ND.new_empty(scale, dtype=torch.float32),
    )


@library.custom_op("speedrun::fp8_linear_gradient", mutates_args=())
def _fp8_linear_gradient(
    grad_NO: Tensor, x_DN: Tensor, x_scale: Tensor, weight_DO: Tensor, weight_scale: Tensor, rowwise: bool
) -> tuple[Tensor, Tensor]:
    grad = quantise(grad_NO, GRADIENT_DTYPE, rowwise)
    x_DN, weight_DO = (codes.view(FORWARD_DTYPE) for codes in (x_DN, weight_DO))
    return gradient_products(grad, x_DN, x_scale, weight_DO, weight_scale, grad_NO.dtype)


@_fp8_linear_gradient.register_fake
def _(
    grad_NO: Tensor, x_DN: Tensor, x_scale: Tensor, weight_DO: Tensor, weight_scale: Tensor, rowwise: bool
) -> tuple[Tensor, Tensor]:
    (inputs, rows), outputs = x_DN.shape, weight_DO.shape[1]
    return grad_NO.new_empty((rows, inputs)), grad_NO.new_empty((outputs, inputs))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: tuple[Tensor, ...]) -> None:
    _, weight_OD, ctx.rowwise = inputs
    ctx.weight_dtype = weight_OD.dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_NO: Tensor, *_: None) -> tuple[Tensor, Tensor, None]:
    grad_x_ND, grad_weight_OD = _fp8_linear_gradient(grad_NO, *ctx.saved_tensors, ctx.rowwise)
    return grad_x_ND, grad_weight_OD.to(ctx.weight_dtype), None


_fp8_linear.register_autograd(_backward, setup_context=_setup_context)


def fp8_linear(x_ND: Tensor, weight_OD: Tensor, rowwise: bool = False) -> Tensor:
    """`x @ weight.T` in fp8, for x of any rank; reference: `reference_fp8.fp8_linear`.

    Rows, inputs and outputs are multiples of 16.
    """
    require_fp8_linear(x_ND, weight_OD)
    out_NO: Tensor = _fp8_linear(x_ND.reshape(-1, x_ND.shape[-1]), weight_OD, rowwise)[0]
    return out_NO.view(*x_ND.shape[:-1], weight_OD.shape[0])


def specimens(arch: int) -> list[Specimen]:
    """All three passes over activations, float32 masters and gradients, for both kinds of scale.

    None for Ampere, which has no fp8 and on which no product of codes exists.
    """
    if arch < 89:
        return []
    operands = (("*bf16", "*fp8e4nv"), ("*fp32", "*fp8e4nv"), ("*bf16", "*fp8e5"))
    found = [_reduction(rowwise) for rowwise in (False, True)]
    for rowwise in (False, True):
        found += [_magnitudes(arch, kind, rowwise) for kind in ("*bf16", "*fp32")]
        found += [_cast(arch, kind, code, rowwise) for kind, code in operands]
    return found


def _magnitudes(arch: int, kind: str, rowwise: bool) -> Specimen:
    pointers = {"x_ptr": kind, "row_bits_ptr": "*i32", "column_bits_ptr": "*i32"}
    sizes = dict.fromkeys(("num_rows", "num_columns", "stride_xm"), "i32")
    constants = {"stride_xp": 1, "ROWWISE": rowwise}
    aligned = (*pointers, *sizes)
    return Specimen(magnitudes_kernel, pointers | sizes, constants, _tiles(arch), aligned, False)


def _reduction(rowwise: bool) -> Specimen:
    pointers = {"bits_ptr": "*i32", "multipliers_ptr": "*fp32", "scales_ptr": "*fp32"}
    constants: dict[str, Any] = {"LARGEST_CODE": 448.0, "SMALLEST": SMALLEST_FP8_AMAX}
    signature: dict[str, str] = pointers | {"num_tiles": "i32"}
    if rowwise:
        signature["num_rows"] = "i32"
    else:
        constants["num_rows"] = 1
    config = _TO_ROWS if rowwise else _TO_ONE
    return Specimen(multipliers_kernel, signature, constants, config, tuple(pointers), False)


def _cast(arch: int, kind: str, code: str, rowwise: bool) -> Specimen:
    multipliers = {"row_multipliers_ptr": "*fp32", "column_multipliers_ptr": "*fp32"}
    pointers = {"x_ptr": kind, **multipliers, "codes_ptr": code, "transposed_ptr": code}
    sizes = dict.fromkeys(("num_rows", "num_columns", "stride_xm"), "i32")
    largest_code = torch.finfo(GRADIENT_DTYPE if code == "*fp8e5" else FORWARD_DTYPE).max
    constants = {"stride_xp": 1, "LARGEST_CODE": largest_code, "ROWWISE": rowwise}
    aligned = (*pointers, *sizes)
    return Specimen(cast_kernel, pointers | sizes, constants, _tiles(arch), aligned, False)
