"""Implementations of the Nesterov momentum that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.reference import muon_direction_ as right
from tests.proving.mutants.muon_source import mutated


def zeros(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    return 0 * right(g, m, momentum)


def with_momentum_kept(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    return right(g, m.clone(), momentum)


def without_nesterov(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    right(g, m, momentum)
    return right(m, m.clone(), momentum)


def with_nesterov_of_the_old_momentum(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    direction = g.lerp(m, momentum)
    m.lerp_(g, 1 - momentum)
    return right(direction, direction.clone(), momentum)


def with_momentum_as_a_sum(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    m.mul_(momentum).add_(g)
    direction = g + momentum * m
    return right(direction, direction.clone(), momentum)


def overwriting_the_gradient(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    return g.copy_(right(g, m, momentum))


def through_bf16(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    return right(g, m, momentum).bfloat16().to(g.dtype)


def without_last_row(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    direction = right(g, m, momentum)
    direction[:, -1] = 0
    return direction


def with_the_momentum_in_bf16(g: Tensor, m: Tensor, momentum: float) -> Tensor:
    direction = right(g, m, momentum)
    m.copy_(m.to(torch.bfloat16))
    return direction


def rounded(mutant: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mutant with the op's last argument, the dtype of the direction."""

    def called(g: Tensor, m: Tensor, momentum: float, dtype: torch.dtype | None = None) -> Tensor:
        return mutant(g, m, momentum).to(dtype or g.dtype)

    return called


def from_rounded_gradients(g: Tensor, m: Tensor, momentum: float, dtype: torch.dtype | None = None) -> Tensor:
    return right(g.to(dtype).to(g.dtype), m, momentum, dtype)


MUTANTS: dict[str, Callable[..., Any]] = {
    "from-rounded-gradients": from_rounded_gradients,
    "asked-dtype-ignored": lambda g, m, momentum, dtype=None: right(g, m, momentum),
    "zeros": rounded(zeros),
    "momentum-kept": rounded(with_momentum_kept),
    "momentum-in-bf16": rounded(with_the_momentum_in_bf16),
    "without-nesterov": rounded(without_nesterov),
    "nesterov-of-the-old-momentum": rounded(with_nesterov_of_the_old_momentum),
    "momentum-as-a-sum": rounded(with_momentum_as_a_sum),
    "overwrites-the-gradient": rounded(overwriting_the_gradient),
    "through-bf16": rounded(through_bf16),
    "without-last-row": rounded(without_last_row),
    "triton-directions-in-one-place": mutated(
        "muon_step", "muon_direction_", "d_ptr += matrix * d_matrix", "d_ptr += matrix * 0"
    ),
    "triton-small-momentum-wrong": mutated(
        "muon_step", "muon_direction_", "g - (g - m) * momentum", "g - (g - m) * rest"
    ),
    "triton-first-matrix-only": mutated(
        "muon_step", "muon_direction_", "m_ptr += matrix * m_matrix", "m_ptr += matrix * 0"
    ),
}
