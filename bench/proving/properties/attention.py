"""What holds of causal attention over a query itself and `window` keys to its left.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim. p are the probabilities, L the
largest logit: rounded, it moves them by L units in the last place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.drawing import LAYOUTS, SCALES, draw_tensor, draw_upstream, gradients, leaf, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import accumulation_dtype

HEADS = ((1, 1), (2, 1), (2, 2), (3, 1), (4, 2))
HEAD_DIMS = (8, 16, 24, 40, 64)
# More tokens than a block has in any implementation (128), at and beside the edges of blocks.
LONG = (129, 200, 257)
# Logits of size 1e8 would choose one key by their last bits: nothing can be said of that choice.
LOGIT_SCALES = (1e-4, 1.0, 1.0, 3.0)


class Problem(NamedTuple):
    """The op's arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    window: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    def oracle(self) -> Problem:
        return Problem(self.q.double(), self.k.double(), self.v.double(), self.window)


def draw_problem(
    subject: Subject, data: Any, longest: int = 20, scales: Sequence[float] = LOGIT_SCALES
) -> Problem:
    """Heads of a drawn number and dimension, by row or by token, and windows at their edges more often."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    # Hypothesis prefers small numbers: of long rows, which cost most, some are enough.
    long = longest == LONG[-1] and data.draw(st.integers(0, 7), label="long row") == 7
    T = data.draw(st.sampled_from(LONG) if long else sizes(min(longest, 40)), label="T")
    B = data.draw(st.sampled_from((1,) if long else (1, 1, 2)), label="B")
    H, G = data.draw(st.sampled_from(HEADS[:2] if long else HEADS), label="H, G")
    K = data.draw(st.sampled_from(HEAD_DIMS), label="K")
    window = data.draw(st.sampled_from((0, 1, T - 1, T, 10**6)) | st.integers(0, T - 1), label="window")
    by_token = data.draw(st.booleans(), label="by token")

    def heads_of(heads: int, tensor_scales: Sequence[float]) -> Tensor:
        shape = (T, B, heads, K) if by_token else (B, T, heads, K)
        options: dict[str, Any] = {"scales": tensor_scales, "layouts": LAYOUTS}
        x = draw_tensor(data, shape, dtype, subject.device, **options)
        return x.transpose(0, 1) if by_token else x

    return Problem(heads_of(H, scales), heads_of(G, scales), heads_of(G, SCALES), window)


def products(a_BTHK: Tensor, b_BTGK: Tensor) -> float:
    """The largest product of a row of `a` with one of `b`, float64."""
    b = b_BTGK.double().repeat_interleave(a_BTHK.shape[2] // b_BTGK.shape[2], dim=2)
    return largest(torch.einsum("bqhk,bwhk->bhqw", a_BTHK.double(), b))


def largest_logit(problem: Problem) -> float:
    """The size that the logits may have, of which each rounds by a unit."""
    return float(products(problem.q, problem.k) * problem.q.shape[-1] ** -0.5)


def spread(problem: Problem) -> float:
    """What a unit in the last place becomes through the logits: 1 + L."""
    return 1.0 + largest_logit(problem)


def gradient_scales(problem: Problem, upstream: Tensor) -> tuple[float, float, float]:
    """Magnitudes of what is rounded on the way to the gradients of q, k and v."""
    T, K = problem.q.shape[1], problem.q.shape[-1]
    narrow, wide = (torch.finfo(dtype).eps for dtype in (problem.q.dtype, accumulation_dtype(problem.q)))
    # A key sums over queries: in the accumulator, where as many roundings are smaller than one of the dtype.
    factor = spread(problem) * (1.0 + T * wide / narrow)
    of_logits = products(upstream, problem.v) * K**-0.5
    return (
        factor * of_logits * largest(problem.k),
        factor * of_logits * largest(problem.q),
        factor * largest(upstream),
    )


def with_gradients(subject_function: Any, problem: Problem, upstream: Tensor) -> list[Tensor]:
    """The gradients of q, k and v."""
    q, k, v = (leaf(tensor) for tensor in problem.tensors)
    return gradients(subject_function(q, k, v, problem.window), (q, k, v), (upstream,))


def sees(problem: Problem) -> Tensor:
    """Which query sees which key, bool [T, T]."""
    positions = torch.arange(problem.q.shape[1], device=problem.q.device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance <= problem.window)


def output_is_that_of_the_dense_mask(subject: Subject, data: Any) -> float:
    """The output is the masked softmax's mean of the values, hardly less exact than eager's."""
    problem = draw_problem(subject, data, LONG[-1])
    oracle = subject.reference(*problem.oracle())
    scale = spread(problem) * largest(problem.v)
    return error_ratio(subject.function(*problem), subject.reference(*problem), oracle, ulps=2.0, scale=scale)


def gradients_are_those_of_the_dense_mask(subject: Subject, data: Any) -> float:
    """Gradients of q, k and v for any upstream gradient, expanded ones included, are float64's."""
    problem = draw_problem(subject, data, LONG[-1])
    upstream = draw_upstream(data, problem.q)
    actual = with_gradients(subject.function, problem, upstream)
    eager = with_gradients(subject.reference, problem, upstream)
    oracle = with_gradients(subject.reference, problem.oracle(), upstream.double())
    return max(
        error_ratio(*each, ulps=2.0, scale=scale)
        for *each, scale in zip(actual, eager, oracle, gradient_scales(problem, upstream), strict=True)
    )


def keys_out_of_sight_change_no_bit(subject: Subject, data: Any) -> float:
    """A query's output is the same, bit for bit, whatever lies beyond its window, behind and ahead."""
    problem = draw_problem(subject, data, LONG[-1])
    query = data.draw(st.integers(0, problem.q.shape[1] - 1), label="query")
    hidden = ~sees(problem)[query][:, None, None]
    noise = torch.where(hidden, 50.0, 0.0).to(problem.q.dtype)
    changed = problem._replace(k=problem.k + noise, v=problem.v - noise)
    before, after = subject.function(*problem), subject.function(*changed)
    assert torch.equal(before[:, query], after[:, query])
    return 0.0


def every_key_in_sight_has_weight(subject: Subject, data: Any) -> float:
    """p is above 0 exactly where the query sees the key, for the last and first key in sight too."""
    problem = draw_problem(subject, data, LONG[-1], scales=(1e-4, 1.0))
    key = data.draw(st.integers(0, problem.q.shape[1] - 1), label="key")
    only = torch.zeros_like(problem.v)
    only[:, key] = 1.0
    weights = subject.function(*problem._replace(v=only))
    assert torch.equal((weights > 0).all(-1), (weights != 0).any(-1))
    assert torch.equal((weights > 0).all(-1), sees(problem)[:, key][None, :, None].expand(weights.shape[:-1]))
    return 0.0


def equal_values_are_their_own_mean(subject: Subject, data: Any) -> float:
    """The probabilities sum to 1: a value that all keys share comes out, to its last digit or two."""
    problem = draw_problem(subject, data)
    shared = problem.v[:, :1].expand(problem.v.shape)
    expected = shared.repeat_interleave(problem.q.shape[2] // shared.shape[2], dim=2)
    actual = subject.function(*problem._replace(v=shared))
    return error_ratio(actual, expected, expected, ulps=3.0)


def output_is_between_the_values_in_sight(subject: Subject, data: Any) -> float:
    """A mean lies between the smallest and the largest of what it is of."""
    problem = draw_problem(subject, data)
    values = problem.v.double().repeat_interleave(problem.q.shape[2] // problem.v.shape[2], dim=2)[:, None]
    hidden = ~sees(problem)[None, :, :, None, None]
    lowest = values.masked_fill(hidden, float("inf")).amin(2)
    highest = values.masked_fill(hidden, float("-inf")).amax(2)
    y = subject.function(*problem).double()
    excess = torch.maximum(lowest - y, y - highest).clamp_min(0.0)
    return ratio(largest(excess), 3.0 * torch.finfo(problem.q.dtype).eps * largest(problem.v))


def gradients_are_linear_in_the_upstream_gradient(subject: Subject, data: Any) -> float:
    """-3 times the upstream gradient gives -3 times every gradient."""
    problem = draw_problem(subject, data)
    upstream = draw_upstream(data, problem.q)
    scaled = -3.0 * upstream
    leaves = [leaf(tensor) for tensor in problem.tensors]
    y = subject.function(*leaves, problem.window)
    once = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    thrice = torch.autograd.grad(y, leaves, scaled)
    scales = gradient_scales(problem, scaled)
    return max(
        error_ratio(b, (-3.0 * a).to(a.dtype), -3.0 * a.double(), ulps=8.0, scale=scale)
        for a, b, scale in zip(once, thrice, scales, strict=True)
    )


def gradients_of_keys_and_values_balance(subject: Subject, data: Any) -> float:
    """A query's logits may all be shifted, so dk sums to 0; p sums to 1, so dv sums to the upstream."""
    problem = draw_problem(subject, data)
    upstream = draw_upstream(data, problem.q)
    query = data.draw(st.integers(0, problem.q.shape[1] - 1), label="query")
    alone = torch.zeros_like(upstream, memory_format=torch.contiguous_format)
    alone[:, query] = upstream[:, query]
    _, grad_k, grad_v = with_gradients(subject.function, problem, alone)
    (B, T, G, K), eps = problem.k.shape, torch.finfo(problem.q.dtype).eps
    expected = alone.double().sum(1).view(B, G, -1, K).sum(2)
    _, k_scale, v_scale = gradient_scales(problem, alone)
    return max(
        ratio(largest(grad_k.double().sum(1)), 8.0 * eps * T * max(k_scale, largest(grad_k))),
        ratio(largest(grad_v.double().sum(1) - expected), 8.0 * eps * T * max(v_scale, largest(grad_v))),
    )


def rows_and_heads_are_independent(subject: Subject, data: Any) -> float:
    """A row of the batch and a group of heads give the same alone."""
    problem = draw_problem(subject, data)
    row = data.draw(st.integers(0, problem.q.shape[0] - 1), label="row")
    head = data.draw(st.integers(0, problem.k.shape[2] - 1), label="head")
    group = problem.q.shape[2] // problem.k.shape[2]
    heads = slice(head * group, (head + 1) * group)
    alone = subject.function(
        problem.q[row : row + 1, :, heads],
        problem.k[row : row + 1, :, head : head + 1],
        problem.v[row : row + 1, :, head : head + 1],
        problem.window,
    )
    together = subject.function(*problem)[row : row + 1, :, heads]
    return error_ratio(alone, together, together, ulps=4.0, scale=spread(problem) * largest(problem.v))


def a_window_past_the_row_is_full_attention(subject: Subject, data: Any) -> float:
    """Any window of T - 1 or more sees the same keys."""
    problem = draw_problem(subject, data)
    T = problem.q.shape[1]
    whole, more = (subject.function(*problem._replace(window=window)) for window in (T - 1, 7 * T))
    return error_ratio(whole, more, more, ulps=4.0, scale=spread(problem) * largest(problem.v))


def ratio(error: float, allowed: float) -> float:
    """error / allowed, 0 of no error."""
    if error == 0.0:
        return 0.0
    return error / allowed if allowed else float("inf")


PROPERTIES: tuple[Property, ...] = (
    output_is_that_of_the_dense_mask,
    gradients_are_those_of_the_dense_mask,
    keys_out_of_sight_change_no_bit,
    every_key_in_sight_has_weight,
    equal_values_are_their_own_mean,
    output_is_between_the_values_in_sight,
    gradients_are_linear_in_the_upstream_gradient,
    gradients_of_keys_and_values_balance,
    rows_and_heads_are_independent,
    a_window_past_the_row_is_full_attention,
)
