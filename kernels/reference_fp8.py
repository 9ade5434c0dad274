"""The eager reference of `fp8_linear`: three products of quantised operands, as nanochat's fp8.py takes them.

The forward product multiplies e4m3 by e4m3. Gradients have outliers, so they are quantised to e5m2, which has
more exponents. Each product sums over the last dimension of both operands, and each operand is quantised for
it: one scale for the whole matrix, or, rowwise, one for each row that is summed over. Here the codes are
multiplied by their scales first and the products are ordinary ones.

Shapes: N rows, D inputs, O outputs; M x K by P x K a product that sums over K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.reference import quantise_fp8

FORWARD_DTYPE, GRADIENT_DTYPE = torch.float8_e4m3fn, torch.float8_e5m2


def dequantised(x_MP: Tensor, dtype: torch.dtype, rowwise: bool) -> Tensor:
    """What is left of x after quantisation, in float32, or float64 for float64."""
    codes_MP, scale = quantise_fp8(x_MP, dtype, rowwise)
    accumulation = torch.float64 if x_MP.dtype == torch.float64 else torch.float32
    return codes_MP.to(accumulation) * scale.to(accumulation)


def fp8_product(a_MK: Tensor, b_PK: Tensor, a_dtype: torch.dtype, rowwise: bool) -> Tensor:
    """`a @ b.T`, a quantised to `a_dtype` and b to e4m3, before it is rounded to any result's dtype."""
    return dequantised(a_MK, a_dtype, rowwise) @ dequantised(b_PK, FORWARD_DTYPE, rowwise).T


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_OD: Tensor, rowwise: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x_ND, weight_OD)
        ctx.rowwise = rowwise
        return fp8_product(x_ND, weight_OD, FORWARD_DTYPE, rowwise).to(x_ND.dtype)

    @staticmethod
    def backward(ctx, grad_NO: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        x_ND, weight_OD = ctx.saved_tensors
        grad_x_ND = fp8_product(grad_NO, weight_OD.T, GRADIENT_DTYPE, ctx.rowwise)
        grad_weight_OD = fp8_product(grad_NO.T, x_ND.T, GRADIENT_DTYPE, ctx.rowwise)
        dtype = grad_NO.dtype  # the weight's gradient too is rounded to it, then widened
        return grad_x_ND.to(dtype), grad_weight_OD.to(dtype).to(weight_OD.dtype), None


def fp8_linear(x_ND: Tensor, weight_OD: Tensor, rowwise: bool = False) -> Tensor:
    """`x @ weight.T` in fp8 forward and backward, in the dtype of x; x may have any rank.

    Args:
        weight_OD: the float32 master, quantised as it is.
        rowwise: one scale for each row that a product sums over instead of one for each matrix.
    """
    rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
    out_NO: Tensor = _Fp8Linear.apply(rows_ND, weight_OD, rowwise)  # type: ignore[no-untyped-call]
    return out_NO.view(*x_ND.shape[:-1], weight_OD.shape[0])
