"""Implementations of the Nesterov momentum and of MuonEq that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import SMALLEST_NORM
from kernels.reference import muon_direction_ as right
from tests.proving.mutants.muon_source import mutated


def zeros(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    return 0 * right(g, m, momentum, equilibrate)


def with_momentum_kept(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    return right(g, m.clone(), momentum, equilibrate)


def without_nesterov(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    right(g, m, momentum)
    return right(m, m.clone(), momentum, equilibrate)


def with_nesterov_of_the_old_momentum(
    g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none"
) -> Tensor:
    direction = g.lerp(m, momentum)
    m.lerp_(g, 1 - momentum)
    return right(direction, direction.clone(), momentum, equilibrate)


def with_momentum_as_a_sum(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    m.mul_(momentum).add_(g)
    direction = g + momentum * m
    return right(direction, direction.clone(), momentum, equilibrate)


def overwriting_the_gradient(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    return g.copy_(right(g, m, momentum, equilibrate))


def through_bf16(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    return right(g, m, momentum, equilibrate).bfloat16().to(g.dtype)


def without_last_row(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    direction = right(g, m, momentum, equilibrate)
    direction[:, -1] = 0
    return direction


def with_rows_and_columns_swapped(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    other = {"none": "none", "row": "column", "column": "row"}[equilibrate]
    return right(g, m, momentum, other)


def equilibrated(
    scale: Callable[[Tensor, int], Tensor], g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none"
) -> Tensor:
    direction = right(g, m, momentum)
    if equilibrate == "none":
        return direction
    dim = -1 if equilibrate == "row" else -2
    return direction * scale(direction.norm(dim=dim, keepdim=True), -3 - dim)


def to_norm_one(norms: Tensor, lines: int) -> Tensor:
    return 1 / norms.clamp_min(SMALLEST_NORM)


def to_the_mean_norm(norms: Tensor, lines: int) -> Tensor:
    return norms.mean((-2, -1), keepdim=True) / norms.clamp_min(SMALLEST_NORM)


def to_the_matrix_norm(norms: Tensor, lines: int) -> Tensor:
    return norms.square().sum((-2, -1), keepdim=True).sqrt() / norms.clamp_min(SMALLEST_NORM)


def without_the_smallest_norm(norms: Tensor, lines: int) -> Tensor:
    return norms.square().mean((-2, -1), keepdim=True).sqrt() / norms


def of_the_whole_stack(norms: Tensor, lines: int) -> Tensor:
    return norms.square().mean().sqrt() / norms.clamp_min(SMALLEST_NORM)


def by_squares(norms: Tensor, lines: int) -> Tensor:
    return norms.square().mean((-2, -1), keepdim=True) / norms.square().clamp_min(SMALLEST_NORM)


def ignoring_the_equilibration(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    return right(g, m, momentum)


def with_the_momentum_in_bf16(g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none") -> Tensor:
    direction = right(g, m, momentum, equilibrate)
    m.copy_(m.to(torch.bfloat16))
    return direction


def rounded(mutant: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mutant with the op's last argument, the dtype of the direction."""

    def called(
        g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none", dtype: torch.dtype | None = None
    ) -> Tensor:
        return mutant(g, m, momentum, equilibrate).to(dtype or g.dtype)

    return called


def rounded_before_it_is_scaled(
    g: Tensor, m: Tensor, momentum: float, equilibrate: str = "none", dtype: torch.dtype | None = None
) -> Tensor:
    plain = right(g, m, momentum, dtype=dtype)
    return right(plain, plain.clone(), momentum, equilibrate)


MUTANTS: dict[str, Callable[..., Any]] = {
    "rounded-before-scaled": rounded_before_it_is_scaled,
    "asked-dtype-ignored": lambda g, m, momentum, equilibrate="none", dtype=None: right(
        g, m, momentum, equilibrate
    ),
    "zeros": rounded(zeros),
    "momentum-kept": rounded(with_momentum_kept),
    "momentum-in-bf16": rounded(with_the_momentum_in_bf16),
    "without-nesterov": rounded(without_nesterov),
    "nesterov-of-the-old-momentum": rounded(with_nesterov_of_the_old_momentum),
    "momentum-as-a-sum": rounded(with_momentum_as_a_sum),
    "overwrites-the-gradient": rounded(overwriting_the_gradient),
    "through-bf16": rounded(through_bf16),
    "without-last-row": rounded(without_last_row),
    "rows-and-columns-swapped": rounded(with_rows_and_columns_swapped),
    "equilibration-ignored": rounded(ignoring_the_equilibration),
    "lines-of-norm-one": rounded(partial(equilibrated, to_norm_one)),
    "mean-of-the-norms": rounded(partial(equilibrated, to_the_mean_norm)),
    "lines-of-the-matrix-norm": rounded(partial(equilibrated, to_the_matrix_norm)),
    "without-the-smallest-norm": rounded(partial(equilibrated, without_the_smallest_norm)),
    "target-of-the-whole-stack": rounded(partial(equilibrated, of_the_whole_stack)),
    "by-squares": rounded(partial(equilibrated, by_squares)),
    "triton-norms-of-last-tile": mutated(
        "muon_step", "muon_direction_", "squares += tl.sum(d * d, 1)", "squares = tl.sum(d * d, 1)"
    ),
    "triton-totals-of-last-chunk": mutated(
        "muon_step",
        "muon_direction_",
        "totals += tl.load(squares_ptr + at, mask=at < num_lines, other=0.0)\n    lines",
        "totals = tl.load(squares_ptr + at, mask=at < num_lines, other=0.0)\n    lines",
    ),
    "triton-first-matrix-only": mutated(
        "muon_step", "muon_direction_", "m_ptr += matrix * m_matrix", "m_ptr += matrix * 0"
    ),
}
