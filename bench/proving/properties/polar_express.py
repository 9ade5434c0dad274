"""What holds of MuonEq and of Polar Express: an odd polynomial of the singular values, blind to all else.

Shapes: S stacked matrices of M x P, G = U s V^T; p is the polynomial of all steps. A line is what MuonEq
brings to one norm, a row or a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import require_intact_fence, twin
from bench.proving.drawing import LAYOUTS, draw_generator, fenced, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import POLAR_EXPRESS_COEFFICIENTS, SMALLEST_NORM

DIMS = {"row": -1, "column": -2}  # along which a line's norm is taken
# The shorter side: one tile of the interpreter's 16, or two, of which there is one pair more.
SHORT_SIDES = (1, 2, 3, 8, 15, 16, 17, 20)
# How far two results may be apart that are equal in exact arithmetic. The polynomial's slope is up to 989 at
# small singular values: of bf16's eight bits few remain. The reference itself used 0.36 (500 examples a law).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 0.5}
# p(s) is in [0.8589, 1.1412] for s from 1e-3 to 1 and below 989.5 s under that. bf16: the reference gives up
# to 1.167 (4 x 8).
LARGEST_SINGULAR_VALUE = {torch.float64: 1.1415, torch.float32: 1.142, torch.bfloat16: 1.2}


def draw_dtype(data: Any, subject: Subject) -> torch.dtype:
    """One of the subject's dtypes."""
    dtype: torch.dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    return dtype


def draw_shape(data: Any) -> list[int]:
    """[S, M, P], square, wide or tall."""
    short = data.draw(st.sampled_from(SHORT_SIDES) | st.integers(1, max(SHORT_SIDES)), label="short side")
    long = short + data.draw(st.just(0) | sizes(25), label="how much longer the other is")
    sides = [short, long] if data.draw(st.booleans(), label="wide") else [long, short]
    return [data.draw(st.integers(1, 2), label="S"), *sides]


def draw_factors(data: Any, shape: Sequence[int], smallest: float) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, V^T) in float64; singular values fall evenly from 1 to `smallest`, the largest first."""
    noise = torch.randn(tuple(shape), generator=draw_generator(data), dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(noise, full_matrices=False)
    s = torch.logspace(0, torch.tensor(smallest).log10().item(), U.shape[-1], dtype=torch.float64)
    return U, s, Vh


def draw_gradient(
    data: Any,
    subject: Subject,
    dtype: torch.dtype,
    *,
    smallest: float = 0.05,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """A stack of matrices with these singular values, times a drawn scale, fenced."""
    U, s, Vh = draw_factors(data, draw_shape(data), smallest)
    values = (U * s @ Vh) * data.draw(st.sampled_from(scales), label="scale")
    layout = data.draw(st.sampled_from(LAYOUTS), label="layout")
    return fenced(values.to(dtype), subject.device, layout)


def draw_steps(data: Any) -> int:
    """How many steps of the iteration."""
    steps: int = data.draw(st.sampled_from((1, 2)), label="steps")
    return steps


def apart(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The difference as a share of the tolerance."""
    assert actual.shape == expected.shape
    return largest(actual.double() - expected.double()) / TOLERANCE[dtype]


def value(subject: Subject, data: Any) -> float:
    """As close to float64 as eager, for any number of steps."""
    dtype = draw_dtype(data, subject)
    G = draw_gradient(data, subject, dtype, scales=(1e-4, 1.0, 1e4))
    steps, norm_scale = data.draw(st.integers(0, 5), label="steps"), data.draw(st.sampled_from((1.01, 1.3)))
    equilibrate = data.draw(st.sampled_from(("none", *DIMS)), label="equilibrate")
    actual, eager, oracle = (
        function(x, steps, norm_scale, equilibrate)
        for function, x in (
            (subject.function, G),
            (subject.reference, G),
            (subject.reference, G.double()),
        )
    )
    # Rounding errors of the first steps grow with the slopes of the rest, most where p is steep near 1.
    ulps = 40 if dtype == torch.bfloat16 else 1000
    return error_ratio(actual, eager, oracle, factor=3, ulps=ulps, scale=1.0)


def polynomial_of_the_singular_values(subject: Subject, data: Any) -> float:
    """f(U s V^T) = U p(s / (1.01 |s|)) V^T."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    U, s, Vh = draw_factors(data, draw_shape(data), 0.05)
    mapped = s / (1.01 * s.norm() + 1e-6)
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        mapped = a * mapped + b * mapped**3 + c * mapped**5
    actual = subject.function((U * s @ Vh).to(dtype).to(subject.device), steps)
    return apart(actual.cpu(), U * mapped @ Vh, dtype)


def singular_values_stay_near_one(subject: Subject, data: Any) -> float:
    """No singular value of any gradient, ill-conditioned or of deficient rank, ends above p's maximum."""
    dtype = draw_dtype(data, subject)
    smallest = data.draw(st.sampled_from((0.5, 0.05, 1e-2, 1e-3, 1e-5, 1e-7)), label="smallest")
    G = draw_gradient(data, subject, dtype, smallest=smallest)
    if data.draw(st.booleans(), label="deficient"):
        G = torch.cat((G, G), dim=-1)
    result = subject.function(G).double().cpu()
    assert torch.isfinite(result).all()
    singular = torch.linalg.svdvals(result)
    return largest(singular) / LARGEST_SINGULAR_VALUE[dtype]


def odd(subject: Subject, data: Any) -> float:
    """f(-G) = -f(G), bit for bit."""
    G, steps = draw_gradient(data, subject, draw_dtype(data, subject)), draw_steps(data)
    negative = twin(G).neg_()
    assert torch.equal(subject.function(negative, steps), -subject.function(G, steps))
    return 0.0


def transposing_commutes(subject: Subject, data: Any) -> float:
    """f(G^T) = f(G)^T: tall and wide matrices are treated alike."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    G = draw_gradient(data, subject, dtype)
    return apart(subject.function(G.mT, steps), subject.function(G, steps).mT, dtype)


def rotating_commutes(subject: Subject, data: Any) -> float:
    """f(Q G) = Q f(G) for orthogonal Q."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    G = draw_gradient(data, subject, dtype)
    noise = torch.randn(G.shape[-2], G.shape[-2], generator=draw_generator(data), dtype=torch.float64)
    Q = torch.linalg.qr(noise).Q.to(subject.device)
    rotated = subject.function((Q @ G.double()).to(dtype), steps)
    return apart(rotated, Q @ subject.function(G, steps).double(), dtype)


def size_does_not_matter(subject: Subject, data: Any) -> float:
    """f(c G) = f(G) for c > 0 that leaves the norm far above 1e-6."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    G = draw_gradient(data, subject, dtype)
    c = data.draw(st.sampled_from((0.25, 2.0, 2.0**12)), label="c")
    difference = largest(subject.function(G * c, steps).double() - subject.function(G, steps).double())
    return difference / max(TOLERANCE[dtype], 1e-3)  # what 1e-6 more in the norm is to the result


def draw_uneven(data: Any, subject: Subject) -> Tensor:
    """Matrices whose rows and columns are of norms up to a hundred times apart."""
    G = draw_gradient(data, subject, draw_dtype(data, subject), smallest=0.5)
    for dim in (-2, -1):
        sizes_ = torch.linspace(0.3, 3.0, G.shape[dim], device=G.device).to(G.dtype)
        G = G * (sizes_[:, None] if dim == -2 else sizes_)
    return G


def lines_get_one_norm(subject: Subject, data: Any) -> float:
    """MuonEq, before any step: every line has an equal share of the matrix's norm, which is 1 / 1.01."""
    G, equilibrate = draw_uneven(data, subject), data.draw(st.sampled_from(sorted(DIMS)), label="equilibrate")
    norms = subject.function(G, 0, 1.01, equilibrate).double().norm(dim=DIMS[equilibrate])
    of_matrix = G.double().norm(dim=(-2, -1))[:, None]
    expected = of_matrix / (1.01 * of_matrix + 1e-6) / norms.shape[-1] ** 0.5
    return largest(norms / expected - 1.0) / (8 * torch.finfo(G.dtype).eps)


def small_lines_are_not_blown_up(subject: Subject, data: Any) -> float:
    """MuonEq: a line of zeros stays zero, one of norm under 1e-6 is scaled no more than one of 1e-6."""
    G, equilibrate = draw_uneven(data, subject), data.draw(st.sampled_from(sorted(DIMS)))
    line = G[:, 0] if equilibrate == "row" else G[:, :, 0]
    line.mul_(data.draw(st.sampled_from((0.0, 1e-9)), label="size"))
    lines = G.double()
    norms = lines.norm(dim=DIMS[equilibrate], keepdim=True)
    equal = lines * norms.square().mean((-2, -1), keepdim=True).sqrt() / norms.clamp_min(SMALLEST_NORM)
    expected = equal / (equal.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)
    actual = subject.function(G, 0, 1.01, equilibrate).double()
    small = (x[:, 0] if equilibrate == "row" else x[:, :, 0] for x in (actual, expected))
    first, second = small
    unit = 8 * torch.finfo(G.dtype).eps
    of_small = largest(first - second) / (unit * largest(second) + 1e-30)
    return max(of_small, largest(actual - expected) / (unit * (largest(expected) + 1e-12)))


def columns_are_rows_of_the_transpose(subject: Subject, data: Any) -> float:
    """MuonEq: f(G^T, "row") = f(G, "column")^T."""
    G = draw_uneven(data, subject)
    rows = subject.function(G.mT, 0, 1.01, "row")
    columns = subject.function(G, 0, 1.01, "column").mT
    return error_ratio(rows, columns, columns, ulps=4)


def matrices_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A stack is its matrices one by one; a zero among them stays zero and changes no other."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    G = draw_gradient(data, subject, dtype)
    stack = torch.cat((G, torch.zeros_like(G[:1]), G[:1]))
    equilibrate = data.draw(st.sampled_from(("none", *DIMS)), label="equilibrate")
    result = subject.function(stack, steps, 1.01, equilibrate)
    assert not result[len(G)].any()
    alone = torch.cat([subject.function(g[None], steps, 1.01, equilibrate) for g in G])
    return max(apart(result[: len(G)], alone, dtype), apart(result[-1], alone[0], dtype))


def zeros_around_a_matrix_stay_zeros(subject: Subject, data: Any) -> float:
    """Rows and columns of zeros stay zeros, and the rest does not see them."""
    dtype, steps = draw_dtype(data, subject), draw_steps(data)
    G = draw_gradient(data, subject, dtype)
    rows, columns = (data.draw(st.integers(0, 9), label=label) for label in ("rows", "columns"))
    padded = subject.function(torch.nn.functional.pad(G, (0, columns, 0, rows)), steps)
    assert not padded[:, G.shape[1] :].any()
    assert not padded[:, :, G.shape[2] :].any()
    return apart(padded[:, : G.shape[1], : G.shape[2]], subject.function(G, steps), dtype)


def the_input_is_left_alone(subject: Subject, data: Any) -> float:
    """Neither the gradient nor what lies around it changes, and the result is as often as wanted the same."""
    G, steps = draw_gradient(data, subject, draw_dtype(data, subject)), draw_steps(data)
    copy = twin(G)
    first = subject.function(copy, steps)
    assert torch.equal(copy, G)
    require_intact_fence(copy, G)
    assert torch.equal(first, subject.function(copy, steps))
    return 0.0


PROPERTIES: tuple[Property, ...] = (
    value,
    polynomial_of_the_singular_values,
    singular_values_stay_near_one,
    odd,
    transposing_commutes,
    rotating_commutes,
    size_does_not_matter,
    lines_get_one_norm,
    small_lines_are_not_blown_up,
    columns_are_rows_of_the_transpose,
    matrices_do_not_know_each_other,
    zeros_around_a_matrix_stay_zeros,
    the_input_is_left_alone,
)
