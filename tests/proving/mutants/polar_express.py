"""Implementations of the polar step that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import POLAR_EXPRESS_COEFFICIENTS, SMALLEST_NORM, _equilibrated
from kernels.reference import polar_express as right
from tests.proving.mutants.source import mutated

Coefficients = tuple[tuple[float, float, float], ...]


def zeros(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return torch.zeros_like(G)


def only_normalised(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return right(G, 0, norm_scale)


def with_one_step_less(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return right(G, max(steps - 1, 0), norm_scale)


def with_a_fixed_norm_scale(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return right(G, steps)


def without_eps(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return right(G / G.norm(dim=(-2, -1), keepdim=True), steps, norm_scale)


def with_one_norm_for_the_stack(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    X = right(G.reshape(1, -1, G.shape[-1]), 0, norm_scale).reshape(G.shape)
    return iterated(X, POLAR_EXPRESS_COEFFICIENTS[:steps])


def without_last_row(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    result = right(G, steps, norm_scale)
    return torch.cat((result[:, :-1], 0 * result[:, -1:]), 1)


def without_last_column_of_products(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    keep = torch.ones(G.shape[-1], dtype=G.dtype, device=G.device)
    keep[-1] = 0.5
    return right(G * keep, steps, norm_scale)


def through_bf16(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    return right(G.bfloat16(), steps, norm_scale).to(G.dtype)


def tall_ones_not_turned_back(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    result = right(G, steps, norm_scale)
    return result.mT.reshape(G.shape) if G.shape[-2] > G.shape[-1] else result


def iterated(X: Tensor, coefficients: Coefficients) -> Tensor:
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for a, b, c in coefficients:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X


def with_coefficients(
    change: Callable[[Coefficients], Coefficients], G: Tensor, steps: int = 5, norm_scale: float = 1.01
) -> Tensor:
    return iterated(right(G, 0, norm_scale), change(POLAR_EXPRESS_COEFFICIENTS[:steps]))


def with_only_the_upper_triangle(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    X = right(G, 0, norm_scale)
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        A = (X @ X.mT).triu()
        X = a * X + (b * A + c * A @ A) @ X
    return X


def in_the_gram_form(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    """In every dtype: what diverges in bf16."""
    X = right(G, 0, norm_scale)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    R, Q = X @ X.mT, torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        Z = b * R + c * R @ R
        Z.diagonal(dim1=-2, dim2=-1).add_(a)
        R, Q = Z @ R @ Z, Z @ Q
    X = Q @ X
    return X.mT if tall else X


def changing_its_input(G: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    result = right(G, steps, norm_scale)
    G.mul_(0.5)
    return result


def after_muon_eq(mutant: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mutant with the op's last argument, which it gets right."""

    def called(G: Tensor, steps: int = 5, norm_scale: float = 1.01, equilibrate: str = "none") -> Tensor:
        return mutant(G if equilibrate == "none" else _equilibrated(G, equilibrate), steps, norm_scale)

    return called


def with_muon_eq(
    change: Callable[[Tensor, str], Tensor],
    G: Tensor,
    steps: int = 5,
    norm_scale: float = 1.01,
    equilibrate: str = "none",
) -> Tensor:
    return right(G if equilibrate == "none" else change(G, equilibrate), steps, norm_scale)


def of_the_other_lines(G: Tensor, lines: str) -> Tensor:
    return _equilibrated(G, {"row": "column", "column": "row"}[lines])


def of_the_whole_stack(G: Tensor, lines: str) -> Tensor:
    norms = G.norm(dim=(0, -1) if lines == "row" else (0, -2), keepdim=True)
    return G / norms.clamp_min(SMALLEST_NORM)


def without_the_smallest_norm(G: Tensor, lines: str) -> Tensor:
    return G / G.norm(dim=-1 if lines == "row" else -2, keepdim=True)


def by_squares(G: Tensor, lines: str) -> Tensor:
    return G / G.norm(dim=-1 if lines == "row" else -2, keepdim=True).square().clamp_min(SMALLEST_NORM)


MUTANTS: dict[str, Callable[..., Any]] = {
    "zeros": after_muon_eq(zeros),
    "only-normalised": after_muon_eq(only_normalised),
    "one-step-less": after_muon_eq(with_one_step_less),
    "fixed-norm-scale": after_muon_eq(with_a_fixed_norm_scale),
    "without-eps": after_muon_eq(without_eps),
    "one-norm-for-the-stack": after_muon_eq(with_one_norm_for_the_stack),
    "without-last-row": after_muon_eq(without_last_row),
    "last-column-halved": after_muon_eq(without_last_column_of_products),
    "through-bf16": after_muon_eq(through_bf16),
    "tall-not-turned-back": after_muon_eq(tall_ones_not_turned_back),
    "first-step-again": after_muon_eq(partial(with_coefficients, lambda all_: all_[:1] * len(all_))),
    "without-the-fifth-power": after_muon_eq(
        partial(with_coefficients, lambda all_: tuple((a, b, 0.0) for a, b, _ in all_))
    ),
    "steps-reversed": after_muon_eq(partial(with_coefficients, lambda all_: all_[::-1])),
    "upper-triangle-only": after_muon_eq(with_only_the_upper_triangle),
    "gram-form-in-bf16": after_muon_eq(in_the_gram_form),
    "changes-its-input": after_muon_eq(changing_its_input),
    "rows-and-columns-swapped": partial(with_muon_eq, of_the_other_lines),
    "equilibration-ignored": partial(with_muon_eq, lambda G, lines: G),
    "lines-of-the-whole-stack": partial(with_muon_eq, of_the_whole_stack),
    "without-the-smallest-norm": partial(with_muon_eq, without_the_smallest_norm),
    "by-squares": partial(with_muon_eq, by_squares),
    "triton-totals-of-last-chunk": mutated("polar_express", "totals += squares", "totals = squares"),
    "triton-shares-of-last-chunk": mutated(
        "polar_express", "shares += share * share", "shares = share * share"
    ),
    "triton-lines-of-first-matrix": mutated(
        "polar_express", "g_ptr += matrix * g_matrix", "g_ptr += matrix * 0"
    ),
    "triton-mirror-not-turned": mutated("polar_express", "tl.trans(result)", "result"),
    "triton-distant-pairs-skipped": mutated("polar_express", "& (first >= distance)", ""),
    "triton-diagonal-not-mirrored": mutated(
        "polar_express", "(distance > 0) | (columns[:, None] > rows[None, :])", "distance > 0"
    ),
    "triton-shift-of-first-tiles-only": mutated(
        "polar_express",
        "on_diagonal = rows[:, None]",
        "on_diagonal = tl.where(rows < BLOCK, rows, -1)[:, None]",
    ),
    "triton-depth-masked-late": mutated(
        "polar_express", "in_k = start + ks < depth", "in_k = start + ks <= depth"
    ),
    "triton-first-partial-only": mutated("polar_express", "index < num_blocks", "index < 1"),
}
