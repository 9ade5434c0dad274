"""Implementations of the mix and its norm that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import RMS_NORM_EPS, rms_norm
from kernels.reference import mix_rms_norm as right
from tests.proving.mutants.source import mutated

Pair = tuple[Tensor, Tensor]


def zeros(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    mixed, normed = right(x, other, a, b, eps)
    return 0 * mixed, 0 * normed


def without_other(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    return right(x, 0 * other, a, 0 * b, eps)


def with_swapped_scales(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    return right(x, other, b, a, eps)


def without_eps(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    return right(x, other, a, b, 0.0)


def with_norm(
    norm: Callable[[Tensor, float], Tensor],
    x: Tensor,
    other: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float = RMS_NORM_EPS,
) -> Pair:
    mixed = a * x + b * other
    return mixed, norm(mixed, eps)


def eps_beside_the_root(z: Tensor, eps: float) -> Tensor:
    return z / (z.square().mean(-1, keepdim=True).sqrt() + eps)


def mean_over_a_column_more(z: Tensor, eps: float) -> Tensor:
    return z * (z.square().sum(-1, keepdim=True) / (z.shape[-1] + 1) + eps).rsqrt()


def rms_taken_as_constant(z: Tensor, eps: float) -> Tensor:
    return z * (z.detach().square().mean(-1, keepdim=True) + eps).rsqrt()


def rms_of_the_first_row(z: Tensor, eps: float) -> Tensor:
    rows = z.reshape(-1, z.shape[-1])
    return (rows * (rows[:1].square().mean(-1, keepdim=True) + eps).rsqrt()).view(z.shape)


def without_last_row(z: Tensor, eps: float) -> Tensor:
    rows = rms_norm(z, eps).reshape(-1, z.shape[-1])
    return torch.cat((rows[:-1], 0 * rows[-1:])).view(z.shape)


def without_last_column(z: Tensor, eps: float) -> Tensor:
    return rms_norm(torch.cat((z[..., :-1], 0 * z[..., -1:]), -1), eps)


def through_bf16(z: Tensor, eps: float) -> Tensor:
    return rms_norm(z.bfloat16(), eps).to(z.dtype)


def with_sums_in_bf16(z: Tensor, eps: float) -> Tensor:
    total = torch.zeros_like(z[..., :1], dtype=torch.bfloat16)
    for column in z.square().bfloat16().split(1, -1):
        total = total + column
    return z * (total.to(z.dtype) / z.shape[-1] + eps).rsqrt()


def truncated(x: Tensor) -> Tensor:
    """bf16 whose last bits were cut off instead of rounded, with the gradient of the rounded one."""
    cut = (x.detach().float().contiguous().view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return x.bfloat16() + (cut - x.detach().bfloat16())


def with_truncating_stores(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    if x.dtype != torch.bfloat16:
        return right(x, other, a, b, eps)
    mixed, normed = right(x.float(), other.float(), a, b, eps)
    return truncated(mixed), truncated(normed)


def without_mixed_gradient(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    mixed, normed = right(x, other, a, b, eps)
    return mixed.detach() + 0 * mixed, normed


def without_normed_gradient(
    x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS
) -> Pair:
    mixed, normed = right(x, other, a, b, eps)
    return mixed, normed.detach() + 0 * normed


class _Altered(torch.autograd.Function):
    """The tensor itself, with its gradient altered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alter: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.alter = alter
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.alter(grad), None


def with_altered_scale_gradient(
    alter: Callable[[Tensor], Tensor],
    x: Tensor,
    other: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float = RMS_NORM_EPS,
) -> Pair:
    return right(x, other, a, _Altered.apply(b, alter), eps)


def with_upstream_of_ones(x: Tensor, other: Tensor, a: Tensor, b: Tensor, eps: float = RMS_NORM_EPS) -> Pair:
    mixed, normed = right(x, other, a, b, eps)
    return mixed, _Altered.apply(normed, torch.ones_like)


MUTANTS: dict[str, Callable[..., Any]] = {
    "zeros": zeros,
    "without-other": without_other,
    "swapped-scales": with_swapped_scales,
    "without-eps": without_eps,
    "eps-beside-the-root": partial(with_norm, eps_beside_the_root),
    "mean-over-a-column-more": partial(with_norm, mean_over_a_column_more),
    "rms-taken-as-constant": partial(with_norm, rms_taken_as_constant),
    "rms-of-the-first-row": partial(with_norm, rms_of_the_first_row),
    "without-last-row": partial(with_norm, without_last_row),
    "without-last-column": partial(with_norm, without_last_column),
    "through-bf16": partial(with_norm, through_bf16),
    "sums-in-bf16": partial(with_norm, with_sums_in_bf16),
    "truncating-stores": with_truncating_stores,
    "without-mixed-gradient": without_mixed_gradient,
    "without-normed-gradient": without_normed_gradient,
    "unscaled-scale-gradient": partial(with_altered_scale_gradient, lambda grad: 2 * grad),
    "bf16-scale-gradient": partial(with_altered_scale_gradient, lambda grad: grad.bfloat16().to(grad.dtype)),
    "upstream-of-ones": with_upstream_of_ones,
    "triton-rstd-once": mutated("mix_rms_norm", "* along_N1) * rstd_N1", "* along_N1)"),
    "triton-first-upstream-column-only": mutated(
        "mix_rms_norm", "mix_rows + columns_1D * mix_column", "mix_rows + columns_1D * 0"
    ),
    "triton-last-block-only": mutated("mix_rms_norm", "x_sum += tl.sum", "x_sum = tl.sum"),
    "triton-products-of-last-block": mutated("mix_rms_norm", "products_N += tl.sum", "products_N = tl.sum"),
    "triton-first-program-only": mutated("mix_rms_norm", "partials_2P.sum(1)", "partials_2P[:, 0].clone()"),
    "triton-unscaled-gradient": mutated("mix_rms_norm", "other_scale * grad_ND, mask", "grad_ND, mask"),
}
