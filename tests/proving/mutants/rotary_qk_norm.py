"""Implementations of rotation, norm and factor of queries and keys that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import RMS_NORM_EPS, rms_norm, rotate
from kernels.reference import rotary_qk_norm as right
from tests.proving.mutants.source import mutated

# Of (head, cos, sin, scale, eps).
Head = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def each_head(
    head: Head, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    return head(q, cos, sin, scale, eps), head(k, cos, sin, scale, eps)


def zeros(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return 0 * x


def not_rotated(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(x, eps) * scale


def rotated_the_other_way(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(rotate(x, cos, -sin), eps) * scale


def neighbours_paired(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.stack((first * cos + second * sin, second * cos - first * sin), dim=-1)
    return rms_norm(turned.flatten(-2), eps) * scale


def a_position_late(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(rotate(x, cos.roll(1, 1), sin.roll(1, 1)), eps) * scale


def not_normalised(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rotate(x, cos, sin) * scale


def without_factor(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(rotate(x, cos, sin), eps)


def without_eps(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(rotate(x, cos, sin), 0.0) * scale


def one_norm_for_all_heads(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    turned = rotate(x, cos, sin)
    return turned * (turned.square().mean((-2, -1), keepdim=True) + eps).rsqrt() * scale


def norm_of_half_a_head(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    turned = rotate(x, cos, sin)
    half = turned[..., : x.shape[-1] // 2]
    return turned * (half.square().mean(-1, keepdim=True) + eps).rsqrt() * scale


def rms_taken_as_constant(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    turned = rotate(x, cos, sin)
    return turned * (turned.detach().square().mean(-1, keepdim=True) + eps).rsqrt() * scale


def without_last_position(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    y = rms_norm(rotate(x, cos, sin), eps) * scale
    return torch.cat((y[:, :-1], 0 * y[:, -1:]), dim=1)


def through_bf16(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(rotate(x, cos, sin).bfloat16().to(x.dtype), eps) * scale


class _Truncated(torch.autograd.Function):
    """bf16 whose last bits were cut off instead of rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x.contiguous().view(torch.int32) & -65536).view(torch.float32).bfloat16()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.float()


def with_truncating_stores(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    if x.dtype != torch.bfloat16:
        return rms_norm(rotate(x, cos, sin), eps) * scale
    return _Truncated.apply(rms_norm(rotate(x.float(), cos.float(), sin.float()), eps) * scale)


class _Backwards(torch.autograd.Function):
    """A rotation whose gradient is rotated forwards again instead of back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return rotate(grad, *ctx.saved_tensors), None, None


def gradient_rotated_forwards(x: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float) -> Tensor:
    return rms_norm(_Backwards.apply(x, cos, sin), eps) * scale


def keys_like_queries(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """As if every query head had a key head of its own: further key heads stay as they are."""
    heads = min(q.shape[2], k.shape[2]) - 1
    q_out, k_out = right(q, k, cos, sin, scale, eps)
    return q_out, torch.cat((k_out[:, :, :heads], k[:, :, heads:]), dim=2)


MUTANTS: dict[str, Callable[..., Any]] = {
    head.__name__.replace("_", "-"): partial(each_head, head)
    for head in (
        zeros,
        not_rotated,
        rotated_the_other_way,
        neighbours_paired,
        a_position_late,
        not_normalised,
        without_factor,
        without_eps,
        one_norm_for_all_heads,
        norm_of_half_a_head,
        rms_taken_as_constant,
        without_last_position,
        through_bf16,
        with_truncating_stores,
        gradient_rotated_forwards,
    )
} | {
    "keys-like-queries": keys_like_queries,
    "triton-normed-head-with-its-factor": mutated(
        "rotary_qk_norm", "a_NC * inverse_scale, b_NC * inverse_scale", "a_NC, b_NC"
    ),
    "triton-gradient-without-factor": mutated(
        "rotary_qk_norm",
        "factor_N1 = (rstd_N * scale)[:, None]\n            along",
        "factor_N1 = rstd_N[:, None]\n            along",
    ),
    "triton-mean-of-half-the-products": mutated(
        "rotary_qk_norm", "tl.sum(a_NC * grad_a_NC + b_NC * grad_b_NC, 1)", "tl.sum(a_NC * grad_a_NC, 1)"
    ),
    "triton-first-row-of-the-batch-only": mutated(
        "rotary_qk_norm",
        "x_rows = k_ptr + batch_N1 * k_batch + position_N1 * k_token",
        "x_rows = k_ptr + position_N1 * k_token",
    ),
    "triton-first-head-only": mutated(
        "rotary_qk_norm",
        "grad_head, grad_channel, num_heads = k_head, k_channel, k_heads",
        "grad_head, grad_channel, num_heads = 0, k_channel, k_heads",
    ),
}
