"""Implementations of the linear cross-entropy that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.reference import accumulation_dtype, softcap_logits
from kernels.reference import linear_cross_entropy as right
from tests.proving.mutants.source import mutated


def zeros(hidden: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return 0.0 * right(hidden, weight, *arguments)


def without_softcap(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0, *others: Any
) -> Tensor:
    return right(hidden, weight, targets, 0.0, *others)


def without_z_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    return right(hidden, weight, targets, softcap, reduction, 0.0, ignore_index)


def mean_over_all_rows(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    *others: Any,
) -> Tensor:
    if reduction != "mean":
        return right(hidden, weight, targets, softcap, reduction, *others)
    return right(hidden, weight, targets, softcap, "sum", *others) / max(targets.shape[0], 1)


def mean_of_nothing_is_nan(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    loss = right(hidden, weight, targets, softcap, reduction, z_loss, ignore_index)
    return loss * float("nan") if reduction == "mean" and not (targets != ignore_index).any() else loss


def without_the_last_row(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    kept = torch.arange(targets.shape[0], device=targets.device) < targets.shape[0] - 1
    return right(hidden, weight, targets.where(kept, ignore_index), softcap, reduction, z_loss, ignore_index)


# Loss of each row from the logits before the cap [N, V], the targets, the cap and the z-loss.
Losses = Callable[[Tensor, Tensor, float, float, int], Tensor]


def from_losses(
    losses: Losses,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    logits = (hidden @ weight.to(hidden.dtype).T).to(accumulation_dtype(hidden))
    loss = losses(logits, targets, softcap, z_loss, ignore_index)
    if reduction == "none":
        return loss
    return loss.sum() / ((targets != ignore_index).sum().clamp_min(1) if reduction == "mean" else 1)


def plain_losses(z: Tensor, targets: Tensor, z_loss: float, ignore_index: int) -> Tensor:
    loss = F.cross_entropy(z, targets, ignore_index=ignore_index, reduction="none")
    return loss + (z_loss * z.logsumexp(1).square() * (targets != ignore_index) if z_loss else 0.0)


def slope_taken_as_one(
    logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int
) -> Tensor:
    z = logits + (softcap_logits(logits, softcap) - logits).detach()
    return plain_losses(z, targets, z_loss, ignored)


def z_loss_as_constant(
    logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int
) -> Tensor:
    z = softcap_logits(logits, softcap)
    with torch.no_grad():
        added = plain_losses(z, targets, z_loss, ignored) - plain_losses(z, targets, 0.0, ignored)
    return plain_losses(z, targets, 0.0, ignored) + added


def z_loss_of_ignored_rows(
    logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int
) -> Tensor:
    z = softcap_logits(logits, softcap)
    return plain_losses(z, targets, 0.0, ignored) + (z_loss * z.logsumexp(1).square() if z_loss else 0.0)


def sums_in_the_compute_dtype(
    logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int
) -> Tensor:
    """In float32 and float64 too: as if those were computed in bf16."""
    z = softcap_logits(logits, softcap)
    return plain_losses(z, targets, z_loss, ignored).bfloat16().to(z.dtype)


def no_shift(logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int) -> Tensor:
    z = softcap_logits(logits, softcap)
    counted = targets != ignored
    at_target = z.gather(1, targets.where(counted, 0)[:, None])[:, 0]
    lse = z.exp().sum(1).log()
    return (lse - at_target + z_loss * lse.square()).where(counted, 0.0)


def the_cap_as_shift(logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int) -> Tensor:
    if not softcap:
        return plain_losses(logits, targets, z_loss, ignored)
    z = softcap_logits(logits, softcap)
    counted = targets != ignored
    at_target = z.gather(1, targets.where(counted, 0)[:, None])[:, 0]
    lse = (z - 2.0 * softcap).exp().sum(1).log() + 2.0 * softcap
    return (lse - at_target + z_loss * lse.square()).where(counted, 0.0)


def a_token_more(logits: Tensor, targets: Tensor, softcap: float, z_loss: float, ignored: int) -> Tensor:
    """A padded column that the cap turned from -inf into -c, or a masked 0."""
    z = softcap_logits(F.pad(logits, (0, 1)), softcap)
    return plain_losses(z, targets, z_loss, ignored)


class _UpstreamIgnored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return torch.ones_like(upstream)


class _UpstreamOfTheFirstRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.flatten()[:1].expand(upstream.numel()).view(upstream.shape)


def with_upstream(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(right(*arguments))
    return result


_FROM_LOSSES: tuple[Losses, ...] = (
    slope_taken_as_one,
    z_loss_as_constant,
    z_loss_of_ignored_rows,
    sums_in_the_compute_dtype,
    no_shift,
    the_cap_as_shift,
    a_token_more,
)
# Passages of the Triton kernel and what they become.
_TRITON = {
    "masks before the cap": ('tl.where(inside, z - shift[:, None], float("-inf"))', "z - shift[:, None]"),
    "no slope": ("(e * slope).to(", "e.to("),
    "no slope of the target": ("total / strength) * slope", "total / strength)"),
    "target's entry without the z-loss": ("- total / strength) * slope", "- total) * slope"),
    "scale without the z-loss": ("strength / total", "1.0 / total"),
    "counts ignored rows": ("& (targets != ignore_index) ", ""),
    "first block only": ("sums += e", "sums = e"),
    "negative logits capped as positive": ("tl.where(x < 0.0, -tanh, tanh)", "tanh"),
    "normaliser without its shift": ("normaliser = tl.log(total) + shift", "normaliser = tl.log(total)"),
}
MUTANTS: dict[str, Callable[..., Tensor]] = {
    **{
        function.__name__: function
        for function in (
            zeros,
            without_softcap,
            without_z_loss,
            mean_over_all_rows,
            mean_of_nothing_is_nan,
            without_the_last_row,
        )
    },
    **{losses.__name__: partial(from_losses, losses) for losses in _FROM_LOSSES},
    "upstream_ignored": partial(with_upstream, _UpstreamIgnored),
    "upstream_of_the_first_row": partial(with_upstream, _UpstreamOfTheFirstRow),
    **{
        f"triton, {name}": mutated("linear_cross_entropy", right_text, wrong_text)
        for name, (right_text, wrong_text) in _TRITON.items()
    },
}
