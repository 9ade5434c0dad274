"""The residual stream's mix and its RMS norm, forward and backward, each as one pass over the rows.

The forward reads x and other once and writes both outputs. Nothing is kept for the backward but the inputs:
it must read x and other anyway, for the gradients of the scales, and rebuilds the unrounded mix and the row's
norm from them. So it moves six tensors (x, other and two upstream gradients in, two gradients out) and no
more. The scales' gradients are sums of the programs' partial sums, without atomics: the same bits every time.

Shapes: N rows (all leading dimensions), D width, P programs; a program's tile is BLOCK_N x BLOCK_D.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran
from kernels.reference import RMS_NORM_EPS
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.float32, torch.bfloat16)


class Tile(NamedTuple):
    """What one program holds at a time: so many elements, but rows of no more than `widest` columns."""

    elements: int
    widest: int


# By the lowest architecture that it is for; 0 is the interpreter, where narrow blocks let small tests meet
# rows of several. 512 elements a warp are 16 a thread, of each of the five tensors that the backward holds.
_TILES = {0: Tile(2048, 64), 80: Tile(2048, 4096)}
_ELEMENTS_PER_WARP = 512


def _config(arch: int, width: int) -> Config:
    tile = _TILES[max(known for known in _TILES if known <= arch)]
    block_D = min(triton.next_power_of_2(width), tile.widest)
    block_N = max(tile.elements // block_D, 1)
    return Config({"BLOCK_N": block_N, "BLOCK_D": block_D}, block_N * block_D // _ELEMENTS_PER_WARP)


@triton.jit
def _forward_kernel(
    x_ptr, other_ptr, x_scale_ptr, other_scale_ptr, mixed_ptr, normed_ptr,
    num_rows, x_row, x_column, other_row, other_column, eps,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows_N1 = (tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    x_rows, other_rows = x_ptr + rows_N1 * x_row, other_ptr + rows_N1 * other_row
    x_scale, other_scale = tl.load(x_scale_ptr), tl.load(other_scale_ptr)
    squares_N = tl.full([BLOCK_N], 0.0, tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK_D):
        columns_1D = (start + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
        mask_ND = (rows_N1 < num_rows) & (columns_1D < WIDTH)
        x_ND = tl.load(x_rows + columns_1D * x_column, mask=mask_ND, other=0.0).to(tl.float32)
        other_ND = tl.load(other_rows + columns_1D * other_column, mask=mask_ND, other=0.0).to(tl.float32)
        mixed_ND = x_scale * x_ND + other_scale * other_ND
        squares_N += tl.sum(mixed_ND * mixed_ND, 1)
        tl.store(mixed_ptr + rows_N1 * WIDTH + columns_1D, mixed_ND, mask=mask_ND)
    rstd_N1 = tl.rsqrt(tl.where(rows_N1 < num_rows, squares_N[:, None] / WIDTH + eps, 1.0))
    for start in tl.static_range(0, WIDTH, BLOCK_D):
        if WIDTH > BLOCK_D:  # a row of one block is still in registers
            columns_1D = (start + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
            mask_ND = (rows_N1 < num_rows) & (columns_1D < WIDTH)
            x_ND = tl.load(x_rows + columns_1D * x_column, mask=mask_ND, other=0.0).to(tl.float32)
            other_ND = tl.load(other_rows + columns_1D * other_column, mask=mask_ND, other=0.0).to(tl.float32)
            mixed_ND = x_scale * x_ND + other_scale * other_ND
        tl.store(normed_ptr + rows_N1 * WIDTH + columns_1D, mixed_ND * rstd_N1, mask=mask_ND)


@triton.jit
def _backward_kernel(
    x_ptr, other_ptr, x_scale_ptr, other_scale_ptr, grad_mixed_ptr, grad_normed_ptr,
    grad_x_ptr, grad_other_ptr, partials_ptr,
    num_rows, x_row, x_column, other_row, other_column, mix_row, mix_column, norm_row, norm_column, eps,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows_N1 = (tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    x_rows, other_rows = x_ptr + rows_N1 * x_row, other_ptr + rows_N1 * other_row
    mix_rows, norm_rows = grad_mixed_ptr + rows_N1 * mix_row, grad_normed_ptr + rows_N1 * norm_row
    x_scale, other_scale = tl.load(x_scale_ptr), tl.load(other_scale_ptr)
    squares_N, products_N = tl.full([BLOCK_N], 0.0, tl.float32), tl.full([BLOCK_N], 0.0, tl.float32)
    x_sum, other_sum = 0.0, 0.0
    for start in tl.static_range(0, WIDTH, BLOCK_D):
        columns_1D = (start + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
        mask_ND = (rows_N1 < num_rows) & (columns_1D < WIDTH)
        x_ND = tl.load(x_rows + columns_1D * x_column, mask=mask_ND, other=0.0).to(tl.float32)
        other_ND = tl.load(other_rows + columns_1D * other_column, mask=mask_ND, other=0.0).to(tl.float32)
        grad_ND = tl.load(norm_rows + columns_1D * norm_column, mask=mask_ND, other=0.0).to(tl.float32)
        mixed_ND = x_scale * x_ND + other_scale * other_ND
        squares_N += tl.sum(mixed_ND * mixed_ND, 1)
        products_N += tl.sum(mixed_ND * grad_ND, 1)
    # The 1: rows past the end are zeros, and at eps = 0 their NaN would reach the sums over rows.
    rstd_N1 = tl.rsqrt(tl.where(rows_N1 < num_rows, squares_N[:, None] / WIDTH + eps, 1.0))
    along_N1 = rstd_N1 * (products_N / WIDTH)[:, None]  # the mean of normed * grad: what the norm takes out
    for start in tl.static_range(0, WIDTH, BLOCK_D):
        if WIDTH > BLOCK_D:  # a row of one block is still in registers
            columns_1D = (start + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
            mask_ND = (rows_N1 < num_rows) & (columns_1D < WIDTH)
            x_ND = tl.load(x_rows + columns_1D * x_column, mask=mask_ND, other=0.0).to(tl.float32)
            other_ND = tl.load(other_rows + columns_1D * other_column, mask=mask_ND, other=0.0).to(tl.float32)
            grad_ND = tl.load(norm_rows + columns_1D * norm_column, mask=mask_ND, other=0.0).to(tl.float32)
            mixed_ND = x_scale * x_ND + other_scale * other_ND
        grad_ND = (grad_ND - mixed_ND * rstd_N1 * along_N1) * rstd_N1
        grad_ND += tl.load(mix_rows + columns_1D * mix_column, mask=mask_ND, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + rows_N1 * WIDTH + columns_1D, x_scale * grad_ND, mask=mask_ND)
        tl.store(grad_other_ptr + rows_N1 * WIDTH + columns_1D, other_scale * grad_ND, mask=mask_ND)
        x_sum += tl.sum(grad_ND * x_ND)
        other_sum += tl.sum(grad_ND * other_ND)
    tl.store(partials_ptr + tl.program_id(0), x_sum)
    tl.store(partials_ptr + tl.num_programs(0) + tl.program_id(0), other_sum)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor as [N, D]: a view wherever the leading dimensions have one stride between rows."""
    return tensor.reshape(-1, tensor.shape[-1])


@library.custom_op("speedrun::mix_rms_norm", mutates_args=())
def _mix_rms_norm(
    x_ND: Tensor, other_ND: Tensor, x_scale: Tensor, other_scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    ran("mix_rms_norm", "triton")
    mixed_ND, normed_ND = (x_ND.new_empty(x_ND.shape) for _ in range(2))
    x, other = _rows(x_ND), _rows(other_ND)
    num_rows, width = x.shape
    config = _config(architecture(x.device), width)
    grid = (triton.cdiv(num_rows, config.blocks["BLOCK_N"]),)
    tensors = (x, other, x_scale, other_scale, mixed_ND, normed_ND)
    arguments = (*tensors, num_rows, *x.stride(), *other.stride(), eps)
    launch(_forward_kernel, grid, arguments, (4, 5), config, WIDTH=width)
    return mixed_ND, normed_ND


@_mix_rms_norm.register_fake
def _(
    x_ND: Tensor, other_ND: Tensor, x_scale: Tensor, other_scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape)


@library.custom_op("speedrun::mix_rms_norm_gradients", mutates_args=())
def _gradients(
    x_ND: Tensor,
    other_ND: Tensor,
    x_scale: Tensor,
    other_scale: Tensor,
    grad_mixed_ND: Tensor,
    grad_normed_ND: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of other, and of both scales as [2]: outputs of an op may not share memory."""
    grad_x_ND, grad_other_ND = (x_ND.new_empty(x_ND.shape) for _ in range(2))
    x, other, grad_mixed, grad_normed = map(_rows, (x_ND, other_ND, grad_mixed_ND, grad_normed_ND))
    num_rows, width = x.shape
    config = _config(architecture(x.device), width)
    num_programs = triton.cdiv(num_rows, config.blocks["BLOCK_N"])
    partials_2P = x.new_empty((2, num_programs), dtype=torch.float32)
    tensors = (x, other, x_scale, other_scale, grad_mixed, grad_normed, grad_x_ND, grad_other_ND, partials_2P)
    strides = (*x.stride(), *other.stride(), *grad_mixed.stride(), *grad_normed.stride())
    arguments = (*tensors, num_rows, *strides, eps)
    launch(_backward_kernel, (num_programs,), arguments, (6, 7, 8), config, WIDTH=width)
    return grad_x_ND, grad_other_ND, partials_2P.sum(1)


@_gradients.register_fake
def _(
    x_ND: Tensor,
    other_ND: Tensor,
    x_scale: Tensor,
    other_scale: Tensor,
    grad_mixed_ND: Tensor,
    grad_normed_ND: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape), x_ND.new_empty((2,), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_mixed_ND: Tensor, grad_normed_ND: Tensor) -> tuple[Tensor | None, ...]:
    # Autograd gives zeros for an output without a gradient, never None.
    grad_x_ND, grad_other_ND, grad_scales_2 = _gradients(
        *ctx.saved_tensors, grad_mixed_ND, grad_normed_ND, ctx.eps
    )
    return grad_x_ND, grad_other_ND, grad_scales_2[0], grad_scales_2[1], None


_mix_rms_norm.register_autograd(_backward, setup_context=_setup_context)


def mix_rms_norm(
    x_ND: Tensor, other_ND: Tensor, x_scale: Tensor, other_scale: Tensor, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """(z, rms_norm(z)) of z = x_scale * x + other_scale * other; reference: `reference.mix_rms_norm`.

    z is rounded to the dtype of x once, for the first output; the second is the norm of the unrounded one.

    Args:
        x_ND, other_ND: of any rank from 1 on and any strides, float32 or bfloat16.
        x_scale, other_scale: float32 scalar tensors, of no dimension.
    """
    require_dtype("x_ND", x_ND, DTYPES)
    require(x_ND.ndim >= 1 and x_ND.shape[-1] >= 1, "x_ND", f"shape {list(x_ND.shape)} has no columns")
    require_dtype("other_ND", other_ND, (x_ND.dtype,))
    require_shape("other_ND", other_ND, x_ND.shape)
    require_device("other_ND", other_ND, x_ND)
    for name, scale in (("x_scale", x_scale), ("other_scale", other_scale)):
        require_dtype(name, scale, (torch.float32,))
        require_shape(name, scale, ())
        require_device(name, scale, x_ND)
    mixed_ND, normed_ND = _mix_rms_norm(x_ND, other_ND, x_scale, other_scale, eps)
    return mixed_ND, normed_ND


def specimens(arch: int) -> list[Specimen]:
    """Both kernels at widths of one block (d12, d24) and of several, as launched for this architecture."""
    made = []
    for dtype, width in (("bf16", 768), ("bf16", 1536), ("bf16", 8192), ("fp32", 768)):
        for kernel in (_forward_kernel, _backward_kernel):
            names = [name for name in kernel.arg_names if name.islower()]
            types = {name: f"*{dtype}" for name in names if name.endswith("_ptr")}
            types |= dict.fromkeys([name for name in types if "scale" in name or "partials" in name], "*fp32")
            constants = {name: 1 for name in names if name.endswith("_column")} | {"WIDTH": width}
            integers = [name for name in names if name not in types | constants | {"eps": 0}]
            signature = types | dict.fromkeys(integers, "i32") | {"eps": "fp32"}
            aligned = (*types, *integers)
            made.append(Specimen(kernel, signature, constants, _config(arch, width), aligned, False))
    return made
