"""Implementations of Muon+, NorMuon, cautious decay and the update that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import SMALLEST_NORM, neuron_dim
from kernels.reference import muon_update_ as right
from tests.proving.mutants.muon_source import mutated


def nothing(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    return None


def with_changed(change: dict[str, Any], p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    right(p, u, v, **(constants | change))


def without_normuon(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    if v is not None:
        right(p.clone(), u, v, **constants)
    right(p, u, None, **constants)


def with_second_moment_kept(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    right(p, u, None if v is None else v.clone(), **constants)


def with_the_old_second_moment(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    if v is None:
        return right(p, u, v, **constants)
    old = v.clone()
    right(p.clone(), u, v, **constants)
    return right(p, u, old, **(constants | {"beta2": 1.0}))


def through_bf16(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    right(p, u, v, **constants)
    p.copy_(p.bfloat16())


def without_last_row(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    last = p[:, -1].clone()
    right(p, u, v, **constants)
    p[:, -1] = last


def without_the_first_matrix(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    first = p[0].clone()
    right(p, u, v, **constants)
    p[0] = first


def changing_the_update(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    right(p, u, v, **constants)
    u.mul_(0.5)


def plain_step(
    p: Tensor,
    u: Tensor,
    v: Tensor | None,
    agree: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool = False,
) -> None:
    change = torch.zeros_like(p)
    right(change, u, v, lr=1.0, weight_decay=0.0, beta2=beta2, renormalise=renormalise)
    u = -change
    p.sub_(lr * u + lr * weight_decay * p * agree(u, p))


def with_mask(
    agree: Callable[[Tensor, Tensor], Tensor], p: Tensor, u: Tensor, v: Tensor | None, **constants: Any
) -> None:
    plain_step(p, u, v, agree, **constants)


def decayed_after(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    start = p.clone()
    right(p, u, v, **(constants | {"weight_decay": 0.0}))
    p.sub_(constants["lr"] * constants["weight_decay"] * p * ((start - p) * p >= 0))


def decayed_without_lr(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    right(p, u, v, **(constants | {"weight_decay": constants["weight_decay"] / constants["lr"]}))


def with_other_neurons(p: Tensor, u: Tensor, v: Tensor | None, **constants: Any) -> None:
    if v is None or p.shape[-1] != p.shape[-2]:
        return right(p, u, v, **constants)
    return right(p.mT, u.mT, v.mT.reshape(v.shape), **constants)


def with_normuon(
    rescale: Callable[[Tensor, Tensor, Tensor], Tensor],
    p: Tensor,
    u: Tensor,
    v: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool = False,
) -> None:
    if v is None:
        return right(p, u, v, lr=lr, weight_decay=weight_decay, beta2=beta2, renormalise=renormalise)
    update = u.to(p.dtype)
    if renormalise:
        norm = update.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALLEST_NORM)
        update = update * (min(update.shape[-2:]) ** 0.5 / norm)
    mean_square = update.square().mean(neuron_dim(update), keepdim=True)
    v.lerp_(mean_square, 1.0 - beta2)
    return right(p, rescale(update, v, mean_square), None, lr=lr, weight_decay=weight_decay, beta2=beta2)


def without_the_norm_restored(u: Tensor, v: Tensor, mean_square: Tensor) -> Tensor:
    return u * v.clamp_min(1e-10).rsqrt()


def by_the_mean_square(u: Tensor, v: Tensor, mean_square: Tensor) -> Tensor:
    scaled = u / v.clamp_min(1e-10)
    return scaled * (u.norm(dim=(-2, -1), keepdim=True) / scaled.norm(dim=(-2, -1), keepdim=True))


def without_smallest_second_moment(u: Tensor, v: Tensor, mean_square: Tensor) -> Tensor:
    scaled = u * v.rsqrt()
    return scaled * (u.norm(dim=(-2, -1), keepdim=True) / scaled.norm(dim=(-2, -1), keepdim=True))


def with_the_norm_of_the_whole_stack(u: Tensor, v: Tensor, mean_square: Tensor) -> Tensor:
    scaled = u * v.clamp_min(1e-10).rsqrt()
    return scaled * (u.norm() / scaled.norm().clamp_min(1e-10))


def of_the_kernel(right: str, wrong: str) -> Callable[..., Any]:
    return mutated("muon_step", "muon_update_", right, wrong)


MUTANTS: dict[str, Callable[..., Any]] = {
    "nothing": nothing,
    "without-decay": partial(with_changed, {"weight_decay": 0.0}),
    "fixed-beta2": partial(with_changed, {"beta2": 0.95}),
    "never-renormalised": partial(with_changed, {"renormalise": False}),
    "always-renormalised": partial(with_changed, {"renormalise": True}),
    "without-normuon": without_normuon,
    "second-moment-kept": with_second_moment_kept,
    "old-second-moment": with_the_old_second_moment,
    "through-bf16": through_bf16,
    "without-last-row": without_last_row,
    "without-first-matrix": without_the_first_matrix,
    "changes-the-update": changing_the_update,
    "decay-everywhere": partial(with_mask, lambda u, p: torch.ones_like(p)),
    "decay-where-they-disagree": partial(with_mask, lambda u, p: u * p <= 0),
    "no-decay-at-zero": partial(with_mask, lambda u, p: u * p > 0),
    "decay-after-the-update": decayed_after,
    "decay-without-lr": decayed_without_lr,
    "other-neurons-of-square-ones": with_other_neurons,
    "norm-not-restored": partial(with_normuon, without_the_norm_restored),
    "by-the-mean-square": partial(with_normuon, by_the_mean_square),
    "without-smallest-second-moment": partial(with_normuon, without_smallest_second_moment),
    "norm-of-the-whole-stack": partial(with_normuon, with_the_norm_of_the_whole_stack),
    "triton-sums-of-last-tile": of_the_kernel("squares += tl.sum(u * u, 1)", "squares = tl.sum(u * u, 1)"),
    "triton-factor-once": of_the_kernel("other=0.0) * factor * factor", "other=0.0) * factor"),
    "triton-scaled-of-last-chunk": of_the_kernel("scaled += squares", "scaled = squares"),
    "triton-u-taken-as-contiguous": of_the_kernel("u_ptr + places * u_along", "u_ptr + places"),
    "triton-matrix-factor-of-the-first": of_the_kernel("matrix_ptr + matrix)\n", "matrix_ptr)\n"),
    "triton-strict-mask": of_the_kernel("u * p >= 0.0", "u * p > 0.0"),
}
