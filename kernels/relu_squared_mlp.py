"""The MLP between two residuals, `relu(x @ up.T)^2 @ down.T`, whose backward keeps the squares only.

relu(x @ up.T) is rebuilt as the square root of what was stored for the second product anyway, so the
pre-activation, the widest tensor of the model, is not kept: half the memory of the MLP's activations. The
square root of a bf16 number has half its relative error. In float16 the square underflows below 2.4e-4 and
overflows above 256, so there the pre-activation is kept instead.

Shapes: N rows, D model width, F width inside the MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import require_device, require_dtype, require_shape
from kernels.counting import ran

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        output: Tensor = x.relu().square()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (output,) = ctx.saved_tensors
        grad_x: Tensor = 2.0 * grad * output.sqrt()
        return grad_x


def _relu_squared(x: Tensor) -> Tensor:
    if x.dtype == torch.float16:
        return x.relu().square()
    output: Tensor = _ReluSquared.apply(x)  # type: ignore[no-untyped-call]
    return output


def require_mlp(
    x_ND: Tensor, up_FD: Tensor, down_DF: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these are the arguments of an MLP."""
    require_dtype("x", x_ND, dtypes)
    require_shape("x", x_ND, (*x_ND.shape[:-1], None))
    width = x_ND.shape[-1]
    require_shape("up", up_FD, (None, width))
    require_shape("down", down_DF, (width, up_FD.shape[0]))
    for name, weight in (("up", up_FD), ("down", down_DF)):
        require_dtype(name, weight, DTYPES)
        require_device(name, weight, x_ND)


def relu_squared_mlp(x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """`relu(x @ up.T)^2 @ down.T` for x of any rank; reference: `reference.relu_squared_mlp`.

    Plain torch, so that a compiler fuses the square and its derivative with their neighbours.
    """
    require_mlp(x_ND, up_FD, down_DF)
    ran("relu_squared_mlp", "keep-output")
    pre_NF = F.linear(x_ND, up_FD.to(x_ND.dtype))
    return F.linear(_relu_squared(pre_NF), down_DF.to(x_ND.dtype))
