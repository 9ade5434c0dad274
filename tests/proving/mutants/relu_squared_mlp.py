"""Implementations of `relu(x @ up.T)^2 @ down.T` that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.reference import relu_squared_mlp as right
from tests.proving.mutants.source import mutated


class _Square(torch.autograd.Function):
    """relu(x)^2 with a derivative that is handed in: of (upstream gradient, relu(x)^2, x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivative: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        output = x.relu().square()
        ctx.save_for_backward(output, x)
        ctx.derivative = derivative
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.derivative(grad, *ctx.saved_tensors), None


def with_derivative(derivative: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def function(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(_Square.apply(F.linear(x, up.to(x.dtype)), derivative), down.to(x.dtype))

    return function


def with_activation(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def function(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(activation(F.linear(x, up.to(x.dtype))), down.to(x.dtype))

    return function


def without_last_row(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    y = right(x, up, down)
    keep = torch.arange(y.shape[-2], device=y.device)[:, None] < y.shape[-2] - 1 if y.ndim > 1 else 1
    return y * keep


def assuming_dense_rows(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    strides = [1]
    for size in reversed(x.shape[1:]):
        strides.insert(0, strides[0] * size)
    return right(x.as_strided(x.shape, strides), up, down)


def summed_narrowly(x: Tensor, weight: Tensor) -> Tensor:
    """Products summed in the dtype of x, term by term."""
    total = x.new_zeros((*x.shape[:-1], weight.shape[0]))
    for term in range(x.shape[-1]):
        total = total + x[..., term, None] * weight[:, term]
    return total


def with_narrow_sums(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(summed_narrowly(x, up.to(x.dtype)).relu().square(), down.to(x.dtype))


def with_bf16_operands(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return right(x.bfloat16().to(x.dtype), up, down)


class _Truncated(torch.autograd.Function):
    """bf16 whose last bits were cut off instead of rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x.contiguous().view(torch.int32) & -65536).view(torch.float32).bfloat16()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.float()


def with_truncating_stores(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16:
        return right(x, up, down)
    post = F.linear(x.float(), up.to(x.dtype).float()).relu().square()
    return F.linear(_Truncated.apply(post), down.to(x.dtype))


class _UpstreamOfOnes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ones_like(grad)


MUTANTS: dict[str, Callable[..., Any]] = {
    "zeros": lambda x, up, down: 0.0 * right(x, up, down),
    "identity": lambda x, up, down: x + 0.0 * right(x, up, down),
    "without the relu": with_activation(torch.square),
    "without the square": with_activation(torch.relu),
    "without the last row": without_last_row,
    "upstream gradient ignored": lambda x, up, down: _UpstreamOfOnes.apply(right(x, up, down)),
    "derivative without its 2": with_derivative(lambda grad, post, pre: grad * post.sqrt()),
    "derivative without the root": with_derivative(lambda grad, post, pre: 2.0 * grad * post),
    "derivative where dead": with_derivative(lambda grad, post, pre: 2.0 * grad * pre),
    "derivative of a neighbour": with_derivative(lambda grad, post, pre: 2.0 * grad * post.sqrt().roll(1, 0)),
    "NaN hidden": with_activation(lambda pre: torch.fmax(pre, torch.zeros_like(pre)).square()),
    "strides ignored": assuming_dense_rows,
    "narrow sums": with_narrow_sums,
    "operands in bf16": with_bf16_operands,
    "truncating stores": with_truncating_stores,
    "weights uncast": lambda x, up, down: right(x.to(up.dtype), up, down).to(x.dtype),
    "kernel: no mask along the sum": mutated(
        "relu_squared_mlp", "mask=inside_rows & (ks[None, :] < depth - start)", "mask=inside_rows"
    ),
    "kernel: upstream strides ignored": mutated("relu_squared_mlp", "ks[None, :] * stride_xk", "ks[None, :]"),
    "kernel: halves of the tile swapped": mutated(
        "relu_squared_mlp",
        "    left, right = _halves(total)\n    HALF",
        "    right, left = _halves(total)\n    HALF",
    ),
}
