"""A linear layer whose three products multiply fp8 codes, by torch's scaled product.

The matrix units want both operands with the dimension that is summed over last in memory. The forward product
and the two of the backward pass sum over different dimensions, so every operand is quantised once in either
orientation: for a single scale the second is a transposed copy of the first, rowwise it has other scales.
What is kept for the backward pass is the second orientation's codes, one byte an element.

Shapes: N rows, D inputs, O outputs; M x P a matrix, M x K by P x K a product that sums over K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran
from kernels.reference import quantise_fp8
from kernels.reference_fp8 import FORWARD_DTYPE, GRADIENT_DTYPE

# No float64: the codes' products are summed in float32.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 16  # torch._scaled_mm takes multiples of this only, in all three products


class Operand(NamedTuple):
    """A matrix quantised for products over its columns and, transposed, over its rows.

    `codes_MP` and `codes_PM` are contiguous; their float32 scales are [], or rowwise [M, 1] and [P, 1].
    """

    codes_MP: Tensor
    scale_M: Tensor
    codes_PM: Tensor
    scale_P: Tensor


def require_fp8_linear(x_ND: Tensor, weight_OD: Tensor) -> None:
    """Raise TypeError or ValueError, naming the argument, unless fp8 products of these exist."""
    require_dtype("x", x_ND, DTYPES)
    require_dtype("weight", weight_OD, DTYPES)
    require(x_ND.ndim > 0, "x", "a scalar, expected rows")
    require(x_ND.device.type in ("cpu", "cuda"), "x", f"on {x_ND.device}, which has no fp8 products")
    require_device("weight", weight_OD, x_ND)
    width = x_ND.shape[-1]
    require_shape("weight", weight_OD, (None, width))
    rows = x_ND.numel() // width if width else 0
    for name, kind, size in (
        ("x", "rows", rows),
        ("x", "columns", width),
        ("weight", "rows", weight_OD.shape[0]),
    ):
        multiple = size > 0 and size % TILE == 0
        require(multiple, name, f"{size} {kind}, expected a multiple of {TILE}: fp8 products take no other")


def quantise(x_MP: Tensor, dtype: torch.dtype, rowwise: bool) -> Operand:
    """The matrix in fp8, in both orientations."""
    codes_MP, scale_M = quantise_fp8(x_MP, dtype, rowwise)
    codes_PM, scale_P = quantise_fp8(x_MP.t(), dtype, rowwise) if rowwise else (codes_MP.t(), scale_M)
    return Operand(codes_MP.contiguous(), scale_M, codes_PM.contiguous(), scale_P)


def scaled_product(
    a_MK: Tensor, a_scale: Tensor, b_PK: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool
) -> Tensor:
    """`(a * a_scale) @ (b * b_scale).T` of contiguous fp8 codes.

    Args:
        a_scale, b_scale: both [], or [M, 1] and [P, 1].
        fast: sums less exactly where the device can: on Hopper not every partial sum is moved to float32.
    """
    if a_scale.ndim and dtype != torch.bfloat16:  # CUDA's rowwise product knows bf16 results only
        one = torch.ones((), device=a_MK.device)
        total_MP = torch._scaled_mm(a_MK, b_PK.t(), one, one, out_dtype=torch.float32, use_fast_accum=fast)
        return (total_MP * a_scale * b_scale.t()).to(dtype)
    b_scale = b_scale.t() if b_scale.ndim else b_scale
    return torch._scaled_mm(a_MK, b_PK.t(), a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast)


def forward_product(x: Operand, weight: Operand, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T`, summed fast."""
    return scaled_product(x.codes_MP, x.scale_M, weight.codes_MP, weight.scale_M, dtype, True)


def gradient_products(
    grad: Operand, x_DN: Tensor, x_scale: Tensor, weight_DO: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight from the gradient of the output and the transposed codes kept."""
    grad_x_ND = scaled_product(grad.codes_MP, grad.scale_M, weight_DO, weight_scale, dtype, False)
    grad_weight_OD = scaled_product(grad.codes_PM, grad.scale_P, x_DN, x_scale, dtype, False)
    return grad_x_ND, grad_weight_OD


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_OD: Tensor, rowwise: bool) -> Tensor:  # type: ignore[no-untyped-def]
        x, weight = (quantise(each, FORWARD_DTYPE, rowwise) for each in (x_ND, weight_OD))
        ctx.save_for_backward(x.codes_PM, x.scale_P, weight.codes_PM, weight.scale_P)
        ctx.rowwise, ctx.weight_dtype = rowwise, weight_OD.dtype
        return forward_product(x, weight, x_ND.dtype)

    @staticmethod
    def backward(ctx, grad_NO: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        grad = quantise(grad_NO, GRADIENT_DTYPE, ctx.rowwise)
        x_DN, x_scale, weight_DO, weight_scale = ctx.saved_tensors
        grad_x_ND, grad_weight_OD = gradient_products(
            grad, x_DN, x_scale, weight_DO, weight_scale, grad_NO.dtype
        )
        return grad_x_ND, grad_weight_OD.to(ctx.weight_dtype), None


def fp8_linear(x_ND: Tensor, weight_OD: Tensor, rowwise: bool = False) -> Tensor:
    """`x @ weight.T` in fp8, for x of any rank; reference: `reference_fp8.fp8_linear`.

    Rows, inputs and outputs are multiples of 16.
    """
    require_fp8_linear(x_ND, weight_OD)
    ran("fp8_linear", "scaled-mm")
    rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
    out_NO: Tensor = _Fp8Linear.apply(rows_ND, weight_OD, rowwise)  # type: ignore[no-untyped-call]
    return out_NO.view(*x_ND.shape[:-1], weight_OD.shape[0])
