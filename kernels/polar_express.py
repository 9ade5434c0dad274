"""Polar Express on a stack of matrices: products and shifts of the diagonal, in the form fit for the shape.

A step is X <- (aI + bA + cA^2) X with A = X X^T. Completing the square makes it two shifts of a diagonal
and three plain products, (A + delta I)^2 + epsilon I, once X is scaled so that A^2 has the factor 1; the
scales of all steps are folded into the normalisation (`shifts`). Adding a on the diagonal instead of a X to
the product also spares `baddbmm`, which copies X first: measured on one thread of an AMX core, bf16, 24 x 384
x 384, 3.8 ms for a product against 6.2 ms (medians of 12, interleaved).

Gram form, for float32 matrices at least twice as long as wide: iterate the n x n Gram matrix R = X X^T and
the accumulated factor Q, and touch the long side only twice (Gram Newton-Schulz, Dao-AILab 2026). For n x 4n
that is 2.4x fewer FLOPs; on square matrices it saves nothing. Never in bf16 or fp16: the rounding of R makes
its smallest eigenvalues negative, and the polynomials, which multiply small ones by up to 1e6, send those to
infinity. Largest singular value in bf16, over 12 shapes from 1 x 1 to 384 x 1536, condition numbers 2 to 1e6
and deficient ranks: this form 1.142, Gram 2e9, Gram with R recomputed from X after two steps 1.45, after one
and three 12, for the last two steps only 1.166 (8 x 16).

Shapes: S stacked matrices of M x P; n the shorter side, N = M*P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import require, require_dtype, require_shape
from kernels.compiling import compiled_pass, is_worth_compiling
from kernels.counting import ran
from kernels.reference import POLAR_EXPRESS_COEFFICIENTS, SMALLEST_NORM, accumulation_dtype

GRAM_ASPECT_RATIO = 2
EQUILIBRATE = {"none": None, "row": -1, "column": -2}  # the dimension along which MuonEq's norms are taken
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Shift(NamedTuple):
    """One step: X <- ((X X^T + delta I)^2 + epsilon I) X."""

    delta: float
    epsilon: float


def shifts(steps: int) -> tuple[float, tuple[Shift, ...]]:
    """(scale of the normalised X before the first step, the steps).

    With X' = tX and t^2 = sqrt(beta c): beta (aI + bA + cA^2) = (A' + delta I)^2 + epsilon I, and the step's
    result is scaled by beta t = t^5 / c, which must be the next step's t and 1 after the last.
    """
    t, backwards = 1.0, []
    for a, b, c in reversed(POLAR_EXPRESS_COEFFICIENTS[:steps]):
        t = (c * t) ** 0.2
        beta = t**4 / c
        delta = 0.5 * b * (beta / c) ** 0.5
        backwards.append(Shift(delta, beta * a - delta**2))
    return t, tuple(reversed(backwards))


def require_polar(
    gradient_SMP: Tensor, steps: int, equilibrate: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise TypeError or ValueError unless these are arguments of the polar step."""
    require_dtype("gradient_SMP", gradient_SMP, dtypes)
    require_shape("gradient_SMP", gradient_SMP, (None, None, None))
    most = len(POLAR_EXPRESS_COEFFICIENTS)
    require(0 <= steps <= most, "steps", f"{steps}, there are coefficients for 0 to {most}")
    require(equilibrate in EQUILIBRATE, "equilibrate", f"{equilibrate!r}, expected {', '.join(EQUILIBRATE)}")


def polar_express(
    gradient_SMP: Tensor,
    steps: int = 5,
    norm_scale: float = 1.01,
    equilibrate: str = "none",
    *,
    compiled: bool = False,
) -> Tensor:
    """Approximate nearest semi-orthogonal matrices; reference: `reference.polar_express`.

    Args:
        gradient_SMP: in the dtype to iterate in (bf16 where the device multiplies it faster).
        steps: how many of the five coefficient triples to apply.
        norm_scale: the Frobenius norm is divided by itself times this, so that singular values start below 1.
        equilibrate: what MuonEq brings to one norm first, in the pass that normalises.
        compiled: whether that goes through torch.compile: 2.9 ms at d6, else 10.9 (two cores, medians of 20).
    """
    require_polar(gradient_SMP, steps, equilibrate, DTYPES)
    ran("polar_express", "two-forms")
    scale, each = shifts(steps)
    X = _start(gradient_SMP, scale, norm_scale, EQUILIBRATE[equilibrate], compiled)
    if not each:
        return X
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    gram = X.shape[-1] >= GRAM_ASPECT_RATIO * X.shape[-2] and X.dtype == accumulation_dtype(X)
    *first, last = (each,) if gram else [(shift,) for shift in each]
    for together in first:
        X = _factor(X, together) @ X
    Q = _factor(X, last)
    return X.mT @ Q.mT if tall else Q @ X  # Q is symmetric; so the result is contiguous


def _start(gradient_SMP: Tensor, scale: float, norm_scale: float, dim: int | None, compiled: bool) -> Tensor:
    """The matrices, after MuonEq of lines along `dim`, of norm scale / norm_scale; contiguous."""
    numbers = [torch.tensor(number, dtype=accumulation_dtype(gradient_SMP)) for number in (scale, norm_scale)]
    compiled = compiled and is_worth_compiling(gradient_SMP)
    started: Callable[..., Tensor] = _normalised if dim is None else _equilibrated
    started = compiled_pass(started) if compiled else started
    if dim is None:  # one compilation for all shapes
        return started(gradient_SMP.flatten(1), *numbers).view(gradient_SMP.shape)
    return started(gradient_SMP, *numbers, dim).contiguous()


def _normalised(gradient_SN: Tensor, scale: Tensor, norm_scale: Tensor) -> Tensor:
    """Each row divided by its norm times `norm_scale`, times `scale`."""
    norm_S1 = torch.linalg.vector_norm(gradient_SN, dim=1, keepdim=True, dtype=scale.dtype)
    factor_S1: Tensor = scale / (norm_S1 * norm_scale + 1e-6)
    return (gradient_SN * factor_S1).to(gradient_SN.dtype)


def _equilibrated(gradient_SMP: Tensor, scale: Tensor, norm_scale: Tensor, dim: int) -> Tensor:
    """The same after MuonEq, whose matrices' norms follow from those of the lines."""
    norms = torch.linalg.vector_norm(gradient_SMP, dim=dim, keepdim=True, dtype=scale.dtype)
    inverses = norms.clamp_min(SMALLEST_NORM).reciprocal()
    target_S11 = norms.square().mean((-2, -1), keepdim=True).sqrt()
    norm_S11 = target_S11 * (norms * inverses).square().sum((-2, -1), keepdim=True).sqrt()
    factors: Tensor = inverses * (target_S11 * scale / (norm_S11 * norm_scale + 1e-6))
    return (gradient_SMP * factors).to(gradient_SMP.dtype)


def _factor(X: Tensor, together: tuple[Shift, ...]) -> Tensor:
    """The product of these steps' factors, from one Gram matrix of X."""
    R = X @ X.mT
    Q: Tensor | None = None
    for i, (delta, epsilon) in enumerate(together):
        last = i + 1 == len(together)
        shifted = R if last else R.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(delta)
        Z = shifted @ shifted
        Z.diagonal(dim1=-2, dim2=-1).add_(epsilon)
        Q = Z if Q is None else Z @ Q
        R = R if last else Z @ R @ Z
    assert Q is not None
    return Q
