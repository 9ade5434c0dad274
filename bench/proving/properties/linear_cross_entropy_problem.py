"""Problems of the linear cross-entropy, drawn for its properties, and how far results may be apart.

Shapes: N rows, D width, V vocabulary. z is the capped logit. Heads are rounded to the compute dtype
beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.drawing import (
    INTEGER_FENCE,
    draw_generator,
    draw_tensor,
    fenced,
    gradients,
    leaf,
    sizes,
    whole_rows,
)
from bench.proving.subject import Subject
from kernels.reference import accumulation_dtype

SOFTCAPS = (0.0, 15.0, 60.0)
REDUCTIONS = ("mean", "sum", "none")
Z_LOSSES = (0.0, 1e-4, 0.1)
# Deviations of the logits. Up to a plain one no probability comes near the smallest normal float32.
SPREADS = (1e-4, 1.0, 10.0, 1e4)
PLAIN_SPREADS = (1e-4, 1.0, 3.0)
MOST_ROWS, MOST_TOKENS = 34, 130
TILE = 32


class Problem(NamedTuple):
    """The op's arguments but the reduction."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    softcap: float
    z_loss: float
    ignore_index: int

    def logits(self) -> Tensor:
        """[N, V] in float64, before the cap."""
        return self.hidden.detach().double() @ self.weight.detach().double().T

    def counted(self) -> Tensor:
        return self.targets != self.ignore_index

    def largest_z(self) -> float:
        """No |z| is larger."""
        return min(largest(self.logits()), self.softcap or float("inf"))

    def strength(self) -> float:
        """What the z-loss at most multiplies an error of the loss, or the softmax in a gradient, by."""
        return 1.0 + 2.0 * self.z_loss * (self.largest_z() + math.log(self.weight.shape[0]))


class Result(NamedTuple):
    """The op's loss and its gradients."""

    loss: Tensor
    hidden: Tensor
    weight: Tensor


def draw_problem(
    data: Any,
    subject: Subject,
    *,
    spreads: Sequence[float] = PLAIN_SPREADS,
    softcaps: Sequence[float] = SOFTCAPS,
    z_losses: Sequence[float] = Z_LOSSES,
) -> Problem:
    """A problem of any dtype and layout; a row in four is ignored."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    rows, vocab = data.draw(sizes(MOST_ROWS), label="N"), data.draw(sizes(MOST_TOKENS), label="V")
    if data.draw(st.booleans(), label="whole tiles"):  # a run's may be laid out otherwise
        rows, vocab = TILE, -(-vocab // TILE) * TILE
    width = data.draw(sizes(20), label="D")
    width = whole_rows(width, dtype, subject.device)
    scales = [spread / width**0.5 for spread in spreads]
    hidden = draw_tensor(data, (rows, width), dtype, subject.device, scales=scales)
    weight = draw_tensor(
        data, (vocab, width), accumulation_dtype(hidden), subject.device, scales=(1.0,), contents=("normal",)
    )
    weight.copy_(weight.to(dtype))
    ignore_index = data.draw(st.sampled_from((-1, -100, 0)), label="ignore_index")
    return Problem(
        hidden,
        weight,
        draw_targets(data, rows, vocab, ignore_index, subject.device),
        data.draw(st.sampled_from(softcaps), label="softcap"),
        data.draw(st.sampled_from(z_losses), label="z_loss"),
        ignore_index,
    )


def draw_targets(data: Any, rows: int, vocab: int, ignore_index: int, device: torch.device) -> Tensor:
    """Ids, some to be ignored, between others that lie outside the vocabulary."""
    generator = draw_generator(data)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.25] = ignore_index
    if data.draw(st.booleans(), label="strided targets"):
        return torch.stack((targets, torch.full_like(targets, INTEGER_FENCE)), 1).to(device)[:, 0]
    return fenced(targets, device)


def draw_reduction(data: Any) -> str:
    """One of the three reductions."""
    reduction: str = data.draw(st.sampled_from(REDUCTIONS), label="reduction")
    return reduction


def evaluate(
    function: Callable[..., Tensor],
    problem: Problem,
    reduction: str = "sum",
    upstream: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Result:
    """Loss and gradients for an upstream gradient (1 if None), in another dtype if asked for."""
    hidden, weight = leaf(problem.hidden, dtype), leaf(problem.weight, dtype)
    loss = call(function, problem._replace(hidden=hidden, weight=weight), reduction)
    upstream = torch.ones_like(loss) if upstream is None else upstream
    return Result(loss.detach(), *gradients(loss, (hidden, weight), (upstream,)))


def call(function: Callable[..., Tensor], problem: Problem, reduction: str) -> Tensor:
    """The loss of a problem by a function of the op's signature."""
    hidden, weight, targets, softcap, z_loss, ignore_index = problem
    return function(hidden, weight, targets, softcap, reduction, z_loss, ignore_index)


def row_weight(problem: Problem, reduction: str, upstream: Tensor | None = None) -> float:
    """What a row's loss is multiplied by at most."""
    counted = max(int(problem.counted().sum()), 1) if reduction == "mean" else 1
    return (1.0 if upstream is None else largest(upstream)) / counted


def rounding(problem: Problem) -> float:
    """Relative error of a probability by the rounding of logits, in units of the compute dtype's epsilon.

    A capped logit is rounded at the size of the cap; a bf16 one before the cap, the rest is float32.
    """
    size = 1.0 + problem.largest_z()
    return size if problem.hidden.dtype == torch.bfloat16 else size + problem.softcap


def loss_scale(problem: Problem) -> float:
    """Magnitude of what a row's loss is rounded at, in units of its own epsilon."""
    dtype = problem.hidden.dtype
    in_logits = (
        rounding(problem) * torch.finfo(dtype).eps / torch.finfo(accumulation_dtype(problem.hidden)).eps
    )
    return problem.strength() * (in_logits + 1.0 + problem.softcap + problem.largest_z())


def gradient_ratio(
    actual: Result, eager: Result, oracle: Result, problem: Problem, weight_of_row: float
) -> float:
    """Error of the gradients as a share of what is allowed."""
    scale = rounding(problem) * problem.strength() * weight_of_row
    # In float64 the oracle is no nearer to the truth than what it judges: 4.6 ulps seen in 300 examples.
    ulps = 8 if actual.hidden.dtype == torch.float64 else 4
    of_hidden = error_ratio(
        actual.hidden,
        eager.hidden,
        oracle.hidden,
        factor=3,
        ulps=ulps,
        scale=scale * largest(problem.weight),
    )
    # The head's gradient is float32, of products that are rounded to the compute dtype.
    weight_ulps = ulps * torch.finfo(problem.hidden.dtype).eps / torch.finfo(actual.weight.dtype).eps
    scale *= problem.hidden.shape[0] ** 0.5 * largest(problem.hidden)
    return worst(
        of_hidden,
        error_ratio(actual.weight, eager.weight, oracle.weight, factor=3, ulps=weight_ulps, scale=scale),
    )


def worst(*ratios: float) -> float:
    """The largest, NaN if one is; `max` hides a NaN that is not its first argument."""
    return float("nan") if any(math.isnan(ratio) for ratio in ratios) else max(ratios)


def difference_ratio(actual: Tensor, expected: Tensor, scale: float) -> float:
    """|actual - expected| as a share of `scale`."""
    assert actual.shape == expected.shape
    difference = largest(actual.double() - expected.double())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else float("inf")


def same_result(expected: Result, actual: Result, problem: Problem, tokens: Tensor | slice) -> float:
    """Difference of two results of the same numbers in another order, as a share of what is allowed."""
    eps = torch.finfo(problem.hidden.dtype).eps
    scale = 8 * eps * rounding(problem) * problem.strength()
    rows = problem.hidden.shape[0] ** 0.5
    return worst(
        difference_ratio(
            actual.loss, expected.loss, 8 * torch.finfo(actual.loss.dtype).eps * loss_scale(problem)
        ),
        difference_ratio(actual.hidden, expected.hidden, scale * largest(problem.weight)),
        difference_ratio(actual.weight, expected.weight[tokens], scale * rows * largest(problem.hidden)),
    )
