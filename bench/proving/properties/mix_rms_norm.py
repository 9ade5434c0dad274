"""What holds of the mix of two streams and its RMS norm.

Shapes: N rows, D width. x and other are the streams, a and b their scales, z = a x + b other, r = 1 / rms(z).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import scaled
from bench.proving.drawing import LAYOUTS, SCALES, draw_generator, draw_tensor, draw_upstream, leaf, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import RMS_NORM_EPS

# The first three are exact in bf16.
MIX_SCALES = (1.0, 0.125, -0.75, 30.0, 1e-3, 0.0)
# Columns that a problem with eps = 0 has at least: with one, some of 40 mixes of bf16 numbers are often 0.
NO_ROW_OF_ZEROS = 4
FLOAT32_EPS = torch.finfo(torch.float32).eps


class Problem(NamedTuple):
    """The op's tensors; scales are float32, in the oracle float64."""

    x: Tensor
    other: Tensor
    x_scale: Tensor
    other_scale: Tensor

    def oracle(self) -> Problem:
        return Problem(*(tensor.double() for tensor in self))


class Sizes(NamedTuple):
    """Magnitudes behind the bounds, float64, a column [N, 1] each.

    `spread` is r max(|a x| + |b other|): what the roundings of the two terms are relative to in the normed
    row, more than its largest number where they cancel. `gradient` is the size of what makes up that of z.
    """

    rstd: Tensor
    spread: Tensor
    gradient: Tensor


def draw_shape(data: Any, narrowest: int = 1) -> list[int]:
    """[D], [N, D] or [B, N, D]; of more columns than the interpreter's blocks have, too."""
    width, rows = max(data.draw(sizes(130), label="D"), narrowest), data.draw(sizes(40), label="N")
    shape: list[int] = data.draw(st.sampled_from(([width], [rows, width], [2, rows, width])), label="shape")
    return shape


def draw_problem(
    data: Any, subject: Subject, shape: Sequence[int], dtype: torch.dtype, *, plain: bool = False
) -> Problem:
    """A mix; a plain one has normal numbers of size 1 in contiguous tensors and no scale of 0."""
    streams = []
    for _ in range(2):
        if plain:
            options: dict[str, Any] = {"scales": (1.0,), "layouts": ("contiguous",), "contents": ("normal",)}
        else:
            options = {"scales": SCALES, "layouts": LAYOUTS}
        cut = len(shape) == 3 and not plain and data.draw(st.booleans(), label="rows of a longer tensor")
        longer = [shape[0], shape[1] + 3, shape[2]] if cut else shape
        stream = draw_tensor(data, longer, dtype, subject.device, **options)
        streams.append(stream[:, : shape[1]] if cut else stream)
    choices = MIX_SCALES[:3] if plain else MIX_SCALES
    scales = [torch.tensor(data.draw(st.sampled_from(choices)), device=subject.device) for _ in range(2)]
    return Problem(*streams, *scales)


def draw_dtype(data: Any, subject: Subject) -> torch.dtype:
    """One of the dtypes that the subject takes."""
    dtype: torch.dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    return dtype


def run(
    function: Callable[..., Any], problem: Problem, upstreams: Sequence[Tensor], eps: float = RMS_NORM_EPS
) -> tuple[Tensor, ...]:
    """(mixed, normed, gradients of x, other, x_scale, other_scale)."""
    inputs = [leaf(tensor) for tensor in problem]
    outputs = function(*inputs, eps)
    upstreams = [each.to(output.dtype) for each, output in zip(upstreams, outputs, strict=True)]
    return *(output.detach() for output in outputs), *torch.autograd.grad(outputs, inputs, upstreams)


def sizes_of(problem: Problem, upstreams: Sequence[Tensor], eps: float = RMS_NORM_EPS) -> Sizes:
    """The magnitudes of this problem."""
    x, other, a, b = problem.oracle()
    by_mix, by_norm = (each.double().abs().amax(-1, keepdim=True) for each in upstreams)
    rstd = ((a * x + b * other).square().mean(-1, keepdim=True) + eps).rsqrt()
    spread = 1.0 + rstd * ((a * x).abs() + (b * other).abs()).amax(-1, keepdim=True)
    return Sizes(rstd, spread, rstd * by_norm * spread.square() + by_mix)


def value_and_gradients(subject: Subject, data: Any) -> float:
    """Mix, norm and the gradients of both streams are as close to float64 as eager's."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, draw_shape(data), dtype)
    upstreams = [draw_upstream(data, problem.x) for _ in range(2)]
    actual, eager = (run(function, problem, upstreams) for function in (subject.function, subject.reference))
    oracle = run(subject.reference, problem.oracle(), upstreams)
    _, spread, gradient = sizes_of(problem, upstreams)
    a, b = problem.x_scale.abs().item(), problem.other_scale.abs().item()
    terms = a * largest(problem.x) + b * largest(problem.other)
    # Sums are in float32 at least: what their roundings come to in ulps of the dtype.
    ulps = 16 * min(1.0, FLOAT32_EPS / torch.finfo(dtype).eps)
    scales = (terms, largest(spread), a * largest(gradient), b * largest(gradient))
    return max(
        error_ratio(*three, scale=ulps * scale)
        for *three, scale in zip(actual[:4], eager[:4], oracle[:4], scales, strict=True)
    )


def scale_gradients(subject: Subject, data: Any) -> float:
    """The scales' gradients are float32 and as close to float64 as eager's."""
    problem = draw_problem(data, subject, draw_shape(data), draw_dtype(data, subject))
    upstreams = [draw_upstream(data, problem.x) for _ in range(2)]
    actual, eager = (run(function, problem, upstreams) for function in (subject.function, subject.reference))
    oracle = run(subject.reference, problem.oracle(), upstreams)
    gradient = sizes_of(problem, upstreams).gradient
    terms = [(gradient * stream.double().abs()).sum().item() for stream in problem[:2]]
    return max(
        error_ratio(*three, ulps=16, scale=scale)
        for *three, scale in zip(actual[4:], eager[4:], oracle[4:], terms, strict=True)
    )


def rows_have_unit_mean_square(subject: Subject, data: Any) -> float:
    """mean(normed^2) = mean(z^2) / (mean(z^2) + eps): 1 for rows well above eps, 0 for rows of zeros.

    z is the op's own first result: an eager bf16 one rounds its products too, and where they nearly cancel
    that rounding is all there is.
    """
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, draw_shape(data), dtype)
    eps = data.draw(st.sampled_from((RMS_NORM_EPS, 1e-2)), label="eps")
    mixed, normed = subject.function(*problem, eps)
    square = mixed.double().square().mean(-1)
    expected = square / (square + eps)
    x = problem.x
    spread = sizes_of(problem, (x, x), eps).spread.squeeze(-1)
    allowed = 2 * torch.finfo(dtype).eps * expected + 16 * FLOAT32_EPS * spread
    return largest((normed.double().square().mean(-1) - expected) / allowed)


def size_does_not_matter(subject: Subject, data: Any) -> float:
    """norm(c z) = sign(c) norm(z) for eps = 0 and c a power of two, positive or negative."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, draw_shape(data, NO_ROW_OF_ZEROS), dtype, plain=True)
    factor = data.draw(st.sampled_from((2.0, -2.0, 64.0, -(2.0**-9), 2.0**20)), label="c")
    _, base = subject.function(*problem, 0.0)
    x, other, *scales = problem
    mixed, normed = subject.function(scaled(x, factor), scaled(other, factor), *scales, 0.0)
    assert torch.equal(mixed, subject.function(*problem, 0.0)[0] * factor)
    return error_ratio(normed, base * (1.0 if factor > 0 else -1.0), base * (1.0 if factor > 0 else -1.0))


def norms_gradient_is_orthogonal_to_the_mix(subject: Subject, data: Any) -> float:
    """<dx, z> = 0 in every row where only the normed output has a gradient: it ignores the length of z."""
    dtype = draw_dtype(data, subject)
    problem = draw_problem(data, subject, draw_shape(data, NO_ROW_OF_ZEROS), dtype, plain=True)
    upstreams = (torch.zeros_like(problem.x), draw_upstream(data, problem.x))
    *_, dx, dother, _, _ = run(subject.function, problem, upstreams, 0.0)
    x, other, a, b = problem.oracle()
    z = a * x + b * other
    rstd, spread, _ = sizes_of(problem, upstreams, 0.0)
    length = z.norm(dim=-1) * (rstd * upstreams[1].double()).norm(dim=-1)
    unit = torch.finfo(dtype).eps + 32 * FLOAT32_EPS * spread.squeeze(-1).square()
    return max(
        largest((grad.double() * z).sum(-1) / (scale.abs() * length * unit + 1e-300))
        for grad, scale in ((dx, a), (dother, b))
    )


def scale_gradients_are_what_the_mix_gets(subject: Subject, data: Any) -> float:
    """a da + b db = <grad_mixed, z> for eps = 0: the normed output ignores the length of z (Euler)."""
    # Eager rounds the scales' gradients to bf16, where the law would say little.
    dtype = data.draw(
        st.sampled_from([each for each in subject.dtypes if each != torch.bfloat16]), label="dtype"
    )
    problem = draw_problem(data, subject, draw_shape(data, NO_ROW_OF_ZEROS), dtype, plain=True)
    upstreams = [draw_upstream(data, problem.x) for _ in range(2)]
    *_, da, db = (each.double() for each in run(subject.function, problem, upstreams, 0.0))
    x, other, a, b = problem.oracle()
    gradient = sizes_of(problem, upstreams, 0.0).gradient
    allowed = 32 * FLOAT32_EPS * (gradient * ((a * x).abs() + (b * other).abs())).sum()
    expected = (upstreams[0].double() * (a * x + b * other)).sum()
    return largest((a * da + b * db - expected) / allowed)


def rows_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A row's outputs and gradients have the same bits alone, and wherever in a batch it stands."""
    rows, width = data.draw(sizes(40), label="N"), data.draw(sizes(100), label="D")
    problem = draw_problem(data, subject, (rows, width), draw_dtype(data, subject), plain=True)
    upstreams = [draw_upstream(data, problem.x).contiguous() for _ in range(2)]
    whole = run(subject.function, problem, upstreams)[:4]
    order = torch.randperm(rows, generator=draw_generator(data)).to(subject.device)
    some = order[: data.draw(st.integers(1, rows), label="rows kept")]
    x, other, *scales = problem
    part = run(subject.function, Problem(x[some], other[some], *scales), [each[some] for each in upstreams])[
        :4
    ]
    assert all(torch.equal(each, full[some]) for each, full in zip(part, whole, strict=True))
    return 0.0


def gradients_are_linear_in_the_upstream_gradient(subject: Subject, data: Any) -> float:
    """Twice the upstream gradient gives twice the gradients, to rounding: it may lie otherwise in memory."""
    problem = draw_problem(data, subject, draw_shape(data), draw_dtype(data, subject), plain=True)
    upstreams = [draw_upstream(data, problem.x) for _ in range(2)]
    once = run(subject.function, problem, upstreams)[2:]
    twice = run(subject.function, problem, [2 * each for each in upstreams])[2:]
    gradient = sizes_of(problem, upstreams).gradient
    terms = [(gradient * stream.double().abs()).sum().item() for stream in problem[:2]]
    return max(
        error_ratio(two, 2 * one, 2 * one, ulps=16, scale=2 * scale)
        for one, two, scale in zip(once, twice, (0.0, 0.0, *terms), strict=True)
    )


def an_unused_output_is_one_without_gradient(subject: Subject, data: Any) -> float:
    """Gradients through one output alone are those for zeros as the other's upstream gradient."""
    problem = draw_problem(data, subject, draw_shape(data), draw_dtype(data, subject), plain=True)
    used = data.draw(st.integers(0, 1), label="output used")
    upstreams = [torch.zeros_like(problem.x) for _ in range(2)]
    upstreams[used] = draw_upstream(data, problem.x)
    zeros = run(subject.function, problem, upstreams)[2:]
    inputs = [leaf(tensor) for tensor in problem]
    alone = torch.autograd.grad(subject.function(*inputs)[used], inputs, upstreams[used])
    gradient = sizes_of(problem, upstreams).gradient
    terms = [(gradient * stream.double().abs()).sum().item() for stream in problem[:2]]
    return max(
        error_ratio(one, other, other, ulps=16, scale=scale)
        for one, other, scale in zip(alone, zeros, (0.0, 0.0, *terms), strict=True)
    )


def rounding_has_no_bias(subject: Subject, data: Any) -> float:
    """bf16 results are rounded to nearest: truncated ones would be 0.3 % too small on average."""
    numbers = torch.randn(4, 64, 64, generator=draw_generator(data))
    x, other, *upstreams = numbers.to(torch.bfloat16).to(subject.device).unbind()
    problem = Problem(x, other, *torch.tensor((0.75, 0.375), device=subject.device))
    actual = run(subject.function, problem, upstreams)[:4]
    oracle = run(subject.reference, problem.oracle(), upstreams)[:4]
    # The share of the exact result in the error.
    biases = [
        ((ours.double() - exact) * exact).sum() / exact.square().sum()
        for ours, exact in zip(actual, oracle, strict=True)
    ]
    return max(map(largest, biases)) / (torch.finfo(torch.bfloat16).eps / 16)


PROPERTIES: tuple[Property, ...] = (
    value_and_gradients,
    scale_gradients,
    rows_have_unit_mean_square,
    size_does_not_matter,
    norms_gradient_is_orthogonal_to_the_mix,
    scale_gradients_are_what_the_mix_gets,
    rows_do_not_know_each_other,
    gradients_are_linear_in_the_upstream_gradient,
    an_unused_output_is_one_without_gradient,
    rounding_has_no_bias,
)
