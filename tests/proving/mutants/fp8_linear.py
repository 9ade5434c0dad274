"""Implementations of the linear layer in fp8 that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.reference import quantise_fp8
from kernels.reference_fp8 import fp8_linear as right
from tests.proving.mutants.source import mutated

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def widened(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dequantised(x: Tensor, dtype: torch.dtype, rowwise: bool) -> Tensor:
    """What the right quantisation leaves of x."""
    codes, scale = quantise_fp8(x, dtype, rowwise)
    return codes.to(widened(x).dtype) * scale


class Flaws(NamedTuple):
    """The parts of a right layer, to be replaced one at a time."""

    quantise: Callable[[Tensor, torch.dtype, bool], Tensor] = dequantised
    of_gradient: Callable[[Tensor, bool], Tensor] = lambda grad, rowwise: dequantised(grad, E5M2, rowwise)
    rowwise: Callable[[bool], bool] = bool
    upstream: Callable[[Tensor], Tensor] = torch.clone
    grad_weight: Callable[[Tensor], Tensor] = torch.clone
    weight: Callable[[Tensor, Tensor], Tensor] = lambda weight, x: weight


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rowwise: bool, flaws: Flaws) -> Tensor:
        ctx.rowwise, ctx.flaws = flaws.rowwise(rowwise), flaws
        ctx.save_for_backward(x, weight)
        x_codes, weight_codes = (
            flaws.quantise(each, E4M3, ctx.rowwise) for each in (x, flaws.weight(weight, x))
        )
        return (x_codes @ weight_codes.to(x_codes.dtype).T).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, weight), flaws, rowwise = ctx.saved_tensors, ctx.flaws, ctx.rowwise
        weight, upstream = flaws.weight(weight, x), flaws.upstream(grad)
        by_row, by_column = flaws.of_gradient(upstream, rowwise), flaws.of_gradient(upstream.T, rowwise)
        grad_x = by_row @ flaws.quantise(weight.T, E4M3, rowwise).to(by_row.dtype).T
        grad_weight = by_column @ flaws.quantise(x.T, E4M3, rowwise).T
        return grad_x.to(x.dtype), flaws.grad_weight(grad_weight).to(x.dtype).to(weight.dtype), None, None


def flawed(**flaws: Any) -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor, rowwise: bool = False) -> Tensor:
        y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, rowwise, Flaws(**flaws))
        return y.view(*x.shape[:-1], weight.shape[0])

    return function


class Quantisation(NamedTuple):
    """The parts of a right quantisation, to be replaced one at a time."""

    magnitude: Callable[[Tensor], Tensor] = torch.abs
    guard: Callable[[Tensor], Tensor] = lambda amax: amax.clamp_min(1e-12)
    divided: Callable[[float, Tensor], Tensor] = lambda largest, amax: (largest / amax.double()).float()
    scaled: Callable[[Tensor], Tensor] = torch.clone

    def __call__(self, x: Tensor, dtype: torch.dtype, rowwise: bool) -> Tensor:
        x, largest = widened(x), torch.finfo(dtype).max
        size = self.magnitude(x)
        amax = self.guard(size.amax(1, keepdim=True) if rowwise else size.max())
        multiplier = self.divided(largest, amax)
        codes = self.scaled(x * multiplier).clamp(-largest, largest).to(dtype)
        return codes.to(x.dtype) * multiplier.reciprocal()


def cut_off(x: Tensor) -> Tensor:
    """The mantissa's first 3 bits, as many as e4m3 has."""
    return (x.float().contiguous().view(torch.int32) & -(1 << 20)).view(torch.float32).to(x.dtype)


def without_last_row(x: Tensor, weight: Tensor, rowwise: bool = False) -> Tensor:
    y = right(x, weight, rowwise)
    return y * (torch.arange(y.shape[-2], device=y.device)[:, None] < y.shape[-2] - 1)


def hiding_nan(x: Tensor, weight: Tensor, rowwise: bool = False) -> Tensor:
    return right(torch.where(x.isnan(), 0.0, x), weight, rowwise)


MUTANTS: dict[str, Callable[..., Any]] = {
    "zeros": lambda x, weight, rowwise=False: 0.0 * right(x, weight, rowwise),
    "not quantised": flawed(quantise=lambda x, dtype, rowwise: widened(x)),
    "largest number for largest magnitude": flawed(quantise=Quantisation(magnitude=torch.clone)),
    "no guard against zeros": flawed(quantise=Quantisation(guard=torch.clone)),
    "scales to powers of two": flawed(
        quantise=Quantisation(divided=lambda largest, amax: (largest / amax).log2().floor().exp2())
    ),
    # A number divided by a tensor is torch's reciprocal of the tensor times the number: two roundings.
    "scales rounded twice": flawed(quantise=Quantisation(divided=lambda largest, amax: largest / amax)),
    "codes cut off": flawed(quantise=Quantisation(scaled=cut_off)),
    "gradients not quantised": flawed(of_gradient=lambda grad, rowwise: widened(grad)),
    "gradients in e4m3": flawed(of_gradient=lambda grad, rowwise: dequantised(grad, E4M3, rowwise)),
    "rowwise ignored": flawed(rowwise=lambda rowwise: False),
    "always rowwise": flawed(rowwise=lambda rowwise: True),
    "weight rounded first": flawed(weight=lambda weight, x: weight.bfloat16().to(weight.dtype)),
    "upstream gradient ignored": flawed(upstream=torch.ones_like),
    "weight's gradient halved": flawed(grad_weight=lambda grad: 0.5 * grad),
    "without the last row": without_last_row,
    "NaN hidden": hiding_nan,
    "kernel: codes not transposed": mutated("fp8_linear", "tl.trans(codes)", "codes"),
    "kernel: one column of tiles": mutated(
        "fp8_linear", "tile = row_tile * tl.num_programs(1) + column_tile", "tile = row_tile"
    ),
    "kernel: columns by the scales of rows": mutated(
        "fp8_linear", "codes = _clamped(x * of_columns", "codes = _clamped(x * of_rows"
    ),
    "kernel: signed magnitudes": mutated("fp8_linear", "bitcast=True) & 0x7FFFFFFF", "bitcast=True) | 0"),
}
