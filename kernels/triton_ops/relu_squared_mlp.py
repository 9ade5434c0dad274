"""The MLP `relu(x @ up.T)^2 @ down.T` with relu^2 and its derivative in the epilogues of two products.

The forward pass stores the squares only; the derivative needs relu(x @ up.T), which is their square root. So
neither the pre-activation nor its gradient before the derivative ever reaches memory. The other products are
torch's. float16 squares leave the type's range (`kernels.relu_squared_mlp`) and are refused, as is float64:
the kernel accumulates in float32.

Shapes: N rows, D model width, F width inside the MLP, K the dimension that a product sums over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.counting import ran
from kernels.relu_squared_mlp import require_mlp
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.bfloat16, torch.float32)

# By architecture (the nearest one below), then by bytes of an element. GROUP rows of tiles are walked column
# by column, so that programs running at one time read the same rows and weights from the last-level cache.
_CONFIGS: dict[int, dict[int, Config]] = {
    0: {
        2: Config({"BLOCK_N": 64, "BLOCK_F": 64, "BLOCK_K": 64, "GROUP": 8}),
        4: Config({"BLOCK_N": 64, "BLOCK_F": 64, "BLOCK_K": 64, "GROUP": 8}),
    },
    80: {
        2: Config({"BLOCK_N": 128, "BLOCK_F": 128, "BLOCK_K": 32, "GROUP": 8}, num_warps=8, num_stages=4),
        4: Config({"BLOCK_N": 64, "BLOCK_F": 64, "BLOCK_K": 16, "GROUP": 8}, num_warps=4, num_stages=3),
    },
    90: {
        2: Config({"BLOCK_N": 128, "BLOCK_F": 256, "BLOCK_K": 64, "GROUP": 8}, num_warps=8, num_stages=3),
        4: Config({"BLOCK_N": 64, "BLOCK_F": 64, "BLOCK_K": 16, "GROUP": 8}, num_warps=4, num_stages=3),
    },
}


@triton.jit
def _halves(x):
    """The left and the right half of a block's columns."""
    pairs = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def _store(total, post_ptr, out_ptr, rows, column, sizes, DERIVATIVE: tl.constexpr):
    num_rows, num_columns, stride_on = sizes
    columns = column + tl.arange(0, total.shape[1])
    offsets = rows[:, None].to(tl.int64) * stride_on + columns[None, :]
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    if DERIVATIVE:
        post = tl.load(post_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        result = 2.0 * total * tl.sqrt(post)
    else:
        positive = tl.where(total < 0.0, 0.0, total)  # unlike a maximum, this keeps NaN
        result = positive * positive
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store_halves(total, post_ptr, out_ptr, rows, column, sizes, DERIVATIVE: tl.constexpr):
    """A quarter of the tile at a time: whole, the epilogue's operands spill beside the sums (sm_100)."""
    left, right = _halves(total)
    _store(left, post_ptr, out_ptr, rows, column, sizes, DERIVATIVE)
    _store(right, post_ptr, out_ptr, rows, column + left.shape[1], sizes, DERIVATIVE)


@triton.jit
def product_kernel(
    x_ptr,
    weight_ptr,
    post_ptr,
    out_ptr,
    num_rows,
    num_columns,
    depth,
    stride_xn,
    stride_xk,
    stride_wk,
    stride_wf,
    stride_on,
    DERIVATIVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out = relu(x @ weight)^2; with DERIVATIVE out = 2 (x @ weight) sqrt(post), post laid out as out."""
    row_blocks = tl.cdiv(num_rows, BLOCK_N)
    column_blocks = tl.cdiv(num_columns, BLOCK_F)
    program = tl.program_id(0)
    group = program // (GROUP * column_blocks)
    group_rows = tl.minimum(row_blocks - group * GROUP, GROUP)
    within = program % (GROUP * column_blocks)
    rows = (group * GROUP + within % group_rows) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = (within // group_rows) * BLOCK_F
    columns = column + tl.arange(0, BLOCK_F)
    inside_rows = rows[:, None] < num_rows
    inside_columns = columns[None, :] < num_columns
    ks = tl.arange(0, BLOCK_K)
    x_block = x_ptr + rows[:, None].to(tl.int64) * stride_xn + ks[None, :] * stride_xk
    weight_block = weight_ptr + ks[:, None] * stride_wk + columns[None, :].to(tl.int64) * stride_wf
    total = tl.zeros((BLOCK_N, BLOCK_F), dtype=tl.float32)
    for start in range(0, depth, BLOCK_K):
        x = tl.load(x_block, mask=inside_rows & (ks[None, :] < depth - start), other=0.0)
        weight = tl.load(weight_block, mask=inside_columns & (ks[:, None] < depth - start), other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
        x_block += BLOCK_K * stride_xk
        weight_block += BLOCK_K * stride_wk
    left, right = _halves(total)
    HALF: tl.constexpr = BLOCK_F // 2
    sizes = (num_rows, num_columns, stride_on)
    _store_halves(left, post_ptr, out_ptr, rows, column, sizes, DERIVATIVE)
    _store_halves(right, post_ptr, out_ptr, rows, column + HALF, sizes, DERIVATIVE)


def _config(device: torch.device, dtype: torch.dtype) -> Config:
    return _config_of(architecture(device), dtype)


def _config_of(arch: int, dtype: torch.dtype) -> Config:
    return _CONFIGS[max(known for known in _CONFIGS if known <= arch)][dtype.itemsize]


def _product(x_NK: Tensor, weight_KF: Tensor, post_NF: Tensor | None, config: Config) -> Tensor:
    """relu(x @ weight)^2, or 2 (x @ weight) sqrt(post), in the dtype of x."""
    (num_rows, depth), num_columns = x_NK.shape, weight_KF.shape[1]
    out_NF = x_NK.new_empty((num_rows, num_columns))
    tiles = triton.cdiv(num_rows, config.blocks["BLOCK_N"]) * triton.cdiv(
        num_columns, config.blocks["BLOCK_F"]
    )
    arguments = (
        *(x_NK, weight_KF, out_NF if post_NF is None else post_NF, out_NF),
        *(num_rows, num_columns, depth),
        *(*x_NK.stride(), *weight_KF.stride(), out_NF.stride(0)),
    )
    launch(product_kernel, (tiles,), arguments, (3,), config, DERIVATIVE=post_NF is not None)
    return out_NF


@library.custom_op("speedrun::relu_squared_mlp", mutates_args=())
def _mlp(x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> tuple[Tensor, Tensor]:
    """(the MLP's output, the squares kept for its backward pass)."""
    ran("relu_squared_mlp", "triton")
    post_NF = _product(x_ND, up_FD.to(x_ND.dtype).t(), None, _config(x_ND.device, x_ND.dtype))
    return post_NF @ down_DF.to(x_ND.dtype).t(), post_NF


@_mlp.register_fake
def _(x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> tuple[Tensor, Tensor]:
    rows = x_ND.shape[0]
    return x_ND.new_empty((rows, down_DF.shape[0])), x_ND.new_empty((rows, up_FD.shape[0]))


@library.custom_op("speedrun::relu_squared_mlp_gradient", mutates_args=())
def _mlp_gradient(
    grad_ND: Tensor, x_ND: Tensor, post_NF: Tensor, up_FD: Tensor, down_DF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    up, down = up_FD.to(x_ND.dtype), down_DF.to(x_ND.dtype)
    grad_pre_NF = _product(grad_ND, down, post_NF, _config(x_ND.device, x_ND.dtype))
    grad_up_FD = (grad_pre_NF.t() @ x_ND).to(up_FD.dtype)
    grad_down_DF = (grad_ND.t() @ post_NF).to(down_DF.dtype)
    return grad_pre_NF @ up, grad_up_FD, grad_down_DF


@_mlp_gradient.register_fake
def _(
    grad_ND: Tensor, x_ND: Tensor, post_NF: Tensor, up_FD: Tensor, down_DF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), up_FD.new_empty(up_FD.shape), down_DF.new_empty(down_DF.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    x_ND, up_FD, down_DF = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x_ND, output[1], up_FD, down_DF)


def _backward(ctx: Any, grad_ND: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _mlp_gradient(grad_ND, *ctx.saved_tensors)
    return grads


_mlp.register_autograd(_backward, setup_context=_setup_context)


def relu_squared_mlp(x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """`relu(x @ up.T)^2 @ down.T` for x of any rank; reference: `reference.relu_squared_mlp`."""
    require_mlp(x_ND, up_FD, down_DF, DTYPES)
    out_ND: Tensor = _mlp(x_ND.reshape(-1, x_ND.shape[-1]), up_FD, down_DF)[0]
    return out_ND.view(x_ND.shape)


def specimens(arch: int) -> list[Specimen]:
    """Both epilogues in bf16, and in float32, whose products use no matrix units."""
    return [
        _specimen(arch, dtype, kind, derivative)
        for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float32, "*fp32"))
        for derivative in (False, True)
    ]


def _specimen(arch: int, dtype: torch.dtype, kind: str, derivative: bool) -> Specimen:
    pointers = ("x_ptr", "weight_ptr", "post_ptr", "out_ptr")
    # Rows of the activations are dense, and so are those of the weights: [F, D] is read as [K, F] forward.
    dense = ("stride_xk", "stride_wf" if derivative else "stride_wk")
    strides = ("stride_xn", "stride_wk" if derivative else "stride_wf", "stride_on")
    sizes: Sequence[str] = ("num_rows", "num_columns", "depth", *strides)
    return Specimen(
        kernel=product_kernel,
        signature=dict.fromkeys(pointers, kind) | dict.fromkeys(sizes, "i32"),
        constants=dict.fromkeys(dense, 1) | {"DERIVATIVE": derivative},
        config=_config_of(arch, dtype),
        aligned=(*pointers, *sizes),
        uses_matrix_units=dtype == torch.bfloat16,
    )
