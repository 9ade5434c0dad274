"""What holds of queries and keys that are rotated by position and normalised.

Shapes: B batch, T tokens, H query heads, G key heads, K head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import scaled
from bench.proving.drawing import LAYOUTS, draw_generator, draw_tensor, draw_upstream, fenced, leaf, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import RMS_NORM_EPS

HEAD_DIMS = (2, 8, 16, 24, 40, 64, 72, 128)
QK_SCALES = (1.2, 1.0, 0.05, -3.0)


class Problem(NamedTuple):
    """The op's tensors and its factor."""

    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    scale: float

    def oracle(self) -> Problem:
        return Problem(
            self.q.double(), self.k.double(), self.cos.double(), self.sin.double(), scale=self.scale
        )


def tables(num_tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles a model rotates by, [1, T, 1, K/2], fenced."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.outer(torch.arange(num_tokens, dtype=torch.float64), 100.0**-channels)
    cos, sin = (fenced(each.to(dtype), device)[None, :, None] for each in (angles.cos(), angles.sin()))
    return cos, sin


def draw_problem(
    data: Any,
    subject: Subject,
    dtype: torch.dtype,
    *,
    plain: bool = False,
    head_dims: Sequence[int] = HEAD_DIMS,
) -> Problem:
    """Heads in any layout, or views of packed projections; plain ones are normal, of size 1, contiguous."""
    B, T = data.draw(st.integers(1, 2), label="B"), data.draw(sizes(17), label="T")
    H, G = data.draw(st.sampled_from(((1, 1), (2, 1), (3, 3), (1, 2))), label="H, G")
    K = data.draw(st.sampled_from(head_dims), label="K")
    options: dict[str, Any] = {}
    if plain:
        options = {"scales": (1.0,), "layouts": ("contiguous",), "contents": ("normal",)}
    if not plain and data.draw(st.booleans(), label="packed"):
        packed = draw_tensor(data, (B, T, (H + 2 * G) * K), dtype, subject.device, layouts=LAYOUTS[:2])
        q, k, _ = packed.split_with_sizes((H * K, G * K, G * K), dim=-1)
        q, k = q.view(B, T, H, K), k.view(B, T, G, K)
    else:
        q, k = (draw_tensor(data, (B, T, heads, K), dtype, subject.device, **options) for heads in (H, G))
    cos, sin = tables(T, K, dtype, subject.device)
    return Problem(q, k, cos, sin, data.draw(st.sampled_from(QK_SCALES), label="scale"))


def draw_dtype(data: Any, subject: Subject) -> torch.dtype:
    """One of the dtypes that the subject takes."""
    dtype: torch.dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    return dtype


def draw_upstreams(data: Any, problem: Problem) -> list[Tensor]:
    """Upstream gradients of both outputs."""
    return [draw_upstream(data, problem.q), draw_upstream(data, problem.k)]


def run(
    function: Callable[..., Any], problem: Problem, upstreams: Sequence[Tensor], eps: float = RMS_NORM_EPS
) -> tuple[Tensor, ...]:
    """(q, k, gradient of q, gradient of k)."""
    inputs = [leaf(problem.q), leaf(problem.k)]
    outputs = function(*inputs, *problem[2:], eps)
    upstreams = [each.to(output.dtype) for each, output in zip(upstreams, outputs, strict=True)]
    return *(output.detach() for output in outputs), *torch.autograd.grad(outputs, inputs, upstreams)


def rstd(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each head in float64, [B, T, H, 1]."""
    return (x.double().square().mean(-1, keepdim=True) + eps).rsqrt()


def value_and_gradients(subject: Subject, data: Any) -> float:
    """Queries, keys and their gradients are as close to float64 as eager's."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype)
    upstreams = draw_upstreams(data, problem)
    actual, eager = (run(function, problem, upstreams) for function in (subject.function, subject.reference))
    oracle = run(subject.reference, problem.oracle(), upstreams)
    factor = abs(problem.scale)
    root = math.sqrt(problem.q.shape[-1])  # no number of a normed head is larger
    values = zip(actual[:2], eager[:2], oracle[:2], strict=True)
    ratios = [error_ratio(*three, ulps=2, scale=factor) for three in values]
    for x, upstream, *three in zip(problem[:2], upstreams, actual[2:], eager[2:], oracle[2:], strict=True):
        # What makes up the gradient before the part along the head is taken out, which may be all of it.
        size = factor * largest(rstd(x, RMS_NORM_EPS) * upstream.double().norm(dim=-1, keepdim=True)) / root
        ratios.append(error_ratio(*three, ulps=2, scale=2 * size))
    return max(ratios)


def heads_have_one_length(subject: Subject, data: Any) -> float:
    """|y| = |scale| sqrt(K) for eps = 0, so that no attention logit is above scale^2 sqrt(K)."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype, plain=True)
    q, k = (each.double() for each in subject.function(*problem, 0.0))
    length = abs(problem.scale) * math.sqrt(q.shape[-1])
    allowed = 4 * torch.finfo(dtype).eps
    assert largest(q[..., :1, :] @ k[..., :1, :].mT) <= length**2 * (1 + 2 * allowed)
    return max(largest(each.norm(dim=-1) / length - 1.0) / allowed for each in (q, k))


def logits_depend_on_distance_only(subject: Subject, data: Any) -> float:
    """<q at m, k at n> depends on m - n where every position has the same query and the same key."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype, plain=True)
    q, k = (each[:1, :1, :1].expand(1, problem.q.shape[1], 1, -1) for each in problem[:2])
    q, k = (each.double()[0, :, 0] for each in subject.function(q, k, *problem[2:]))
    logits = q @ k.mT
    allowed: float = 16 * torch.finfo(dtype).eps * problem.scale**2 * q.shape[-1]
    return largest(logits[1:, 1:] - logits[:-1, :-1]) / allowed


def turning_back_gives_the_normed_head(subject: Subject, data: Any) -> float:
    """Rotating by the opposite angles afterwards leaves the head normalised, not rotated."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype, plain=True)
    there = subject.function(*problem[:4], 1.0, 0.0)
    back = subject.function(*there, problem.cos, -problem.sin, 1.0, 0.0)
    expected = [x.double() * rstd(x, 0.0) for x in problem[:2]]
    return max(
        error_ratio(ours, exact.to(dtype), exact, ulps=4) for ours, exact in zip(back, expected, strict=True)
    )


def first_position_is_not_rotated(subject: Subject, data: Any) -> float:
    """At position 0 a head is only normalised and scaled, in the order it came in."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype)
    outputs = subject.function(*problem)
    ratios = []
    for y, x in zip(outputs, problem[:2], strict=True):
        expected = (x.double() * rstd(x, RMS_NORM_EPS) * problem.scale)[:, 0]
        ratios.append(error_ratio(y[:, 0], expected.to(dtype), expected, ulps=3))
    return max(ratios)


def gradient_is_orthogonal_to_the_head(subject: Subject, data: Any) -> float:
    """<dq, q> = 0 in every head for eps = 0, whatever the tables: the output ignores a head's length."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype, plain=True, head_dims=HEAD_DIMS[1:])
    upstreams = draw_upstreams(data, problem)
    gradients = run(subject.function, problem, upstreams, 0.0)[2:]
    ratios = []
    for x, grad, upstream in zip(problem[:2], gradients, upstreams, strict=True):
        x, upstream = x.double(), upstream.double()
        length = abs(problem.scale) * (rstd(x, 0.0) * upstream).norm(dim=-1) * x.norm(dim=-1)
        allowed = 4 * torch.finfo(dtype).eps * length + 1e-300
        ratios.append(largest((grad.double() * x).sum(-1) / allowed))
    return max(ratios)


def heads_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A head's output and gradient have the same bits whatever the other heads, rows and positions hold."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, dtype, plain=True)
    upstreams = [each.contiguous() for each in draw_upstreams(data, problem)]
    whole = run(subject.function, problem, upstreams)
    T, H, G = problem.q.shape[1], problem.q.shape[2], problem.k.shape[2]
    generator = draw_generator(data)
    kept = data.draw(st.integers(1, T), label="positions kept")
    heads = [torch.randperm(count, generator=generator).to(subject.device) for count in (H, G)]

    def part(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [each[-1:, :kept, head].contiguous() for each, head in zip(tensors, heads, strict=True)]

    cos, sin = (each[:, :kept] for each in problem[2:4])
    q, k = part(problem[:2])
    fewer = run(subject.function, Problem(q, k, cos, sin, problem.scale), part(upstreams))
    expected = [*part(whole[:2]), *part(whole[2:])]
    assert all(torch.equal(one, other) for one, other in zip(fewer, expected, strict=True))
    return 0.0


def gradients_are_linear_in_the_upstream_gradient(subject: Subject, data: Any) -> float:
    """Twice the upstream gradient gives exactly twice the gradients; keys alone used, queries get zeros."""
    problem = draw_problem(data, subject, draw_dtype(data, subject), plain=True)
    upstreams = draw_upstreams(data, problem)
    once = run(subject.function, problem, upstreams)[2:]
    upstreams = [torch.zeros_like(problem.q), scaled(upstreams[1], 2.0)]
    twice = run(subject.function, problem, upstreams)[2:]
    assert not twice[0].any()
    assert torch.equal(2 * once[1], twice[1])
    return 0.0


def rounding_has_no_bias(subject: Subject, data: Any) -> float:
    """bf16 results are rounded to nearest: truncated ones would be 0.3 % too small on average."""
    numbers = torch.randn(4, 2, 16, 2, 64, generator=draw_generator(data))
    q, k, *upstreams = numbers.to(torch.bfloat16).to(subject.device).unbind()
    # At position 0 of every row: the tables' own rounding, the same for all heads of a position, is no bias.
    cos, sin = (each[:, :1].expand(1, 16, 1, 32) for each in tables(1, 64, torch.bfloat16, subject.device))
    problem = Problem(q, k, cos, sin, 1.25)
    actual = run(subject.function, problem, upstreams)
    oracle = run(subject.reference, problem.oracle(), upstreams)
    # The share of the exact result in the error.
    biases = [
        ((ours.double() - exact) * exact).sum() / exact.square().sum()
        for ours, exact in zip(actual, oracle, strict=True)
    ]
    return max(map(largest, biases)) / (torch.finfo(torch.bfloat16).eps / 16)


PROPERTIES: tuple[Property, ...] = (
    value_and_gradients,
    heads_have_one_length,
    logits_depend_on_distance_only,
    turning_back_gives_the_normed_head,
    first_position_is_not_rotated,
    gradient_is_orthogonal_to_the_head,
    heads_do_not_know_each_other,
    gradients_are_linear_in_the_upstream_gradient,
    rounding_has_no_bias,
)
