"""Implementations of causal sliding-window attention that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import accumulation_dtype
from kernels.reference import sliding_window_attention as right
from tests.proving.mutants.source import mutated


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    *,
    sees: Callable[[Tensor, int], Tensor] = lambda distance, window: (distance >= 0) & (distance <= window),
    scale: float | None = None,
    probabilities: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1),
    by_group: bool = True,
) -> Tensor:
    """The reference with the parts that mutants exchange."""
    positions = torch.arange(q.shape[1])
    mask = sees(positions[:, None] - positions[None, :], window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) if by_group else x.repeat(1, group, 1, 1) for x in (k, v))
    logits = (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).masked_fill(~mask, float("-inf"))
    return (probabilities(logits.to(accumulation_dtype(q))).to(q.dtype) @ v).transpose(1, 2)


def zeros(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    return 0 * right(q, k, v, window)


def values_themselves(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    return v.repeat_interleave(q.shape[2] // v.shape[2], 2) + 0 * right(q, k, v, window)


def without_the_last_token(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    y = right(q, k, v, window)
    return torch.cat((y[:, :-1], 0 * y[:, -1:]), 1)


def with_a_window_of_other_size(more: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    return right(q, k, v, max(window + more, 0))


def in_low_precision(logits: Tensor) -> Tensor:
    low = torch.float32 if logits.dtype == torch.float64 else torch.bfloat16
    return logits.to(low).softmax(-1).to(logits.dtype)


class _RowTermForgotten(torch.autograd.Function):
    """Softmax whose derivative lacks the mean."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p * grad


class _UpstreamIgnored(torch.autograd.Function):
    """The identity whose gradient is 1, whatever comes from above."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ones_like(grad)


def with_upstream_ignored(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    y: Tensor = _UpstreamIgnored.apply(right(q, k, v, window))
    return y


def with_detached_keys(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    return right(q, k.detach() + 0 * k, v, window)


def in_the_kernel(texts: tuple[str, str], q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The Triton kernels with one passage replaced; they take no float64, where the mutant has no flaw."""
    function = right if q.dtype == torch.float64 else mutated("sliding_window_attention", *texts)
    y: Tensor = function(q, k, v, window)
    return y


KERNEL = {
    "window one short": ("(keys >= queries - window)", "(keys > queries - window)"),
    "old sum not shrunk": ("sum_Q = sum_Q * shrink_Q +", "sum_Q = sum_Q +"),
    "queries past the key's block forgotten": ("first_key + BLOCK_W + window", "first_key + BLOCK_W"),
    "no mean in the gradient of keys": ("grad_p_WQ - mean_Q[None, :]", "grad_p_WQ"),
}

MUTANTS: dict[str, Callable[..., Tensor]] = {
    "zeros": zeros,
    "identity": values_themselves,
    "last token dropped": without_the_last_token,
    "window one short": partial(with_a_window_of_other_size, -1),
    "window one long": partial(with_a_window_of_other_size, 1),
    "sees the next token": partial(dense, sees=lambda d, window: (d >= -1) & (d <= window)),
    "not causal": partial(dense, sees=lambda d, window: d.abs() <= window),
    "no window": partial(dense, sees=lambda d, window: d >= 0),
    "unscaled logits": partial(dense, scale=1.0),
    "scaled by K": partial(dense, scale=0.125),
    "key heads by remainder": partial(dense, by_group=False),
    "low-precision softmax": partial(dense, probabilities=in_low_precision),
    "no mean in the softmax's derivative": partial(dense, probabilities=_RowTermForgotten.apply),
    "upstream ignored": with_upstream_ignored,
    "no gradient of keys": with_detached_keys,
    **{f"kernel: {name}": partial(in_the_kernel, texts) for name, texts in KERNEL.items()},
}
