"""Implementations of AdamW that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.reference import adamw_ as right
from tests.proving.mutants.muon_source import mutated

Tensors = Sequence[Tensor]


class Step(NamedTuple):
    """The op's numbers."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def with_rule(
    rule: Callable[[Tensor, Tensor, Tensor, Tensor, Step], Tensor],
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """AdamW with another last line; `rule` gives the new parameter from p, g and the new moments."""
    numbers = Step(step, lr, *betas, eps, weight_decay)
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        g = g.to(m.dtype)
        m.lerp_(g, 1.0 - betas[0])
        v.lerp_(g.square(), 1.0 - betas[1])
        p.copy_(rule(p.to(m.dtype), g, m, v, numbers))


def corrected(m: Tensor, v: Tensor, s: Step) -> tuple[Tensor, Tensor]:
    return m / (1 - s.beta1**s.step), v / (1 - s.beta2**s.step)


def with_l2_instead_of_decay(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    m, v = corrected(m, v, s)
    return p - s.lr * (m / (v.sqrt() + s.eps) + s.weight_decay * m * p)


def without_first_correction(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    return p * (1 - s.lr * s.weight_decay) - s.lr * m / (corrected(m, v, s)[1].sqrt() + s.eps)


def without_second_correction(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    return p * (1 - s.lr * s.weight_decay) - s.lr * corrected(m, v, s)[0] / (v.sqrt() + s.eps)


def with_eps_in_the_root(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    m, v = corrected(m, v, s)
    return p * (1 - s.lr * s.weight_decay) - s.lr * m / (v + s.eps).sqrt()


def with_eps_corrected_too(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    root = (v.sqrt() + s.eps) / (1 - s.beta2**s.step) ** 0.5
    return p * (1 - s.lr * s.weight_decay) - s.lr * corrected(m, v, s)[0] / root


def without_eps(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    m, v = corrected(m, v, s)
    return p * (1 - s.lr * s.weight_decay) - s.lr * m / v.sqrt()


def with_decay_not_by_lr(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    m, v = corrected(m, v, s)
    return p * (1 - s.weight_decay) - s.lr * m / (v.sqrt() + s.eps)


def with_the_gradient_instead_of_its_average(p: Tensor, g: Tensor, m: Tensor, v: Tensor, s: Step) -> Tensor:
    return p * (1 - s.lr * s.weight_decay) - s.lr * g / (corrected(m, v, s)[1].sqrt() + s.eps)


def nothing(params: Tensors, *arguments: Any, **constants: Any) -> None:
    return None


def without_decay(*arguments: Any, **constants: Any) -> None:
    right(*arguments, **(constants | {"weight_decay": 0.0}))


def counting_from_zero(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step: int, **constants: Any
) -> None:
    right(params, grads, exp_avgs, exp_avg_sqs, step + 1, **constants)


def first_parameter_only(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step: int, **constants: Any
) -> None:
    right(params[:1], grads[:1], exp_avgs[:1], exp_avg_sqs[:1], step, **constants)


def without_last_element(params: Tensors, *arguments: Any, **constants: Any) -> None:
    last = [param[..., -1:].clone() for param in params]
    right(params, *arguments, **constants)
    for param, kept in zip(params, last, strict=True):
        param[..., -1:] = kept


def with_moments_in_bf16(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step: int, **constants: Any
) -> None:
    right(params, grads, exp_avgs, exp_avg_sqs, step, **constants)
    for moment in (*exp_avgs, *exp_avg_sqs):
        moment.copy_(moment.to(torch.bfloat16))


def with_truncating_stores(params: Tensors, *arguments: Any, **constants: Any) -> None:
    wide = [param.to(torch.promote_types(param.dtype, torch.float32)) for param in params]
    right(wide, *arguments, **constants)
    for param, exact in zip(params, wide, strict=True):
        if param.dtype == torch.bfloat16:
            exact = (exact.contiguous().view(torch.int32) & -65536).view(torch.float32)
        param.copy_(exact)


def with_truncating_moments(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    *arguments: Any,
    **constants: Any,
) -> None:
    moments = [
        [m.to(torch.promote_types(m.dtype, torch.float32)) for m in ms] for ms in (exp_avgs, exp_avg_sqs)
    ]
    right(params, grads, *moments, *arguments, **constants)
    for moment, exact in zip((*exp_avgs, *exp_avg_sqs), (*moments[0], *moments[1]), strict=True):
        if moment.dtype == torch.bfloat16:
            exact = (exact.contiguous().view(torch.int32) & -65536).view(torch.float32)
        moment.copy_(exact)


def overwriting_gradients(params: Tensors, grads: Tensors, *arguments: Any, **constants: Any) -> None:
    right(params, grads, *arguments, **constants)
    for grad in grads:
        grad.zero_()


def of_the_kernel(wanted: str, wrong: str) -> Callable[..., Any]:
    return mutated("adamw", "adamw_", wanted, wrong)


MUTANTS: dict[str, Callable[..., Any]] = {
    "nothing": nothing,
    "l2-instead-of-decay": partial(with_rule, with_l2_instead_of_decay),
    "without-first-correction": partial(with_rule, without_first_correction),
    "without-second-correction": partial(with_rule, without_second_correction),
    "eps-in-the-root": partial(with_rule, with_eps_in_the_root),
    "eps-corrected-too": partial(with_rule, with_eps_corrected_too),
    "without-eps": partial(with_rule, without_eps),
    "decay-not-by-lr": partial(with_rule, with_decay_not_by_lr),
    "gradient-instead-of-average": partial(with_rule, with_the_gradient_instead_of_its_average),
    "without-decay": without_decay,
    "counts-from-zero": counting_from_zero,
    "first-parameter-only": first_parameter_only,
    "without-last-element": without_last_element,
    "moments-in-bf16": with_moments_in_bf16,
    "truncating-stores": with_truncating_stores,
    "truncating-moments": with_truncating_moments,
    "overwrites-gradients": overwriting_gradients,
    "triton-first-row-only": of_the_kernel("tl.sum((firsts <= program).to(tl.int32), 0) - 1", "0"),
    "triton-block-of-the-launch": of_the_kernel("(program - tl.load(row_ptr + 5))", "(program)"),
    "triton-not-copied-back": of_the_kernel("        if new is not old:\n", "        if False:\n"),
    "triton-root-of-the-wrong-average": of_the_kernel("tl.sqrt_rn(v * scale2)", "tl.sqrt_rn(v) * scale2"),
}
