"""What every implementation of a linear layer in fp8 has to meet.

The oracle multiplies, in float64, what quantisation left of the operands: codes that differ from the
reference's show as errors thousands of times larger than those of sums.

Shapes: N rows, D inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import scaled
from bench.proving.drawing import draw_generator, draw_tensor, draw_upstream, fenced, gradients, leaf
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference_fp8 import FORWARD_DTYPE, GRADIENT_DTYPE, dequantised

TILE = 16  # fp8 products take multiples of this only
# Hopper's fp8 matrix units keep about 14 bits of a sum between its moves to float32 (DeepSeek-V3, arXiv
# 2412.19437, section 3.3.2); the CPU sums in float32.
SUM_EPS = {"cuda": 2.0**-13, "cpu": 2.0**-21}
NARROWEST_CODE = 2.0**-10 / 448.0  # half of e4m3's smallest step, as a share of its largest code


class Arguments(NamedTuple):
    """The op's arguments, in its order."""

    x_ND: Tensor
    weight_OD: Tensor
    rowwise: bool


def products_are_those_of_the_codes(subject: Subject, data: Any) -> float:
    """Output and gradients are the products of the reference's codes: e4m3, and e5m2 for what flows back."""
    arguments = _draw(subject, data, 5)
    upstream = _draw_upstream(data, arguments)
    actual = _outcome(subject.function, arguments, upstream)
    eager = _outcome(subject.reference, arguments, upstream)
    wide = Arguments(arguments.x_ND.double(), arguments.weight_OD.double(), arguments.rowwise)
    oracle = _outcome(subject.reference, wide, upstream.double())
    worst = 0.0
    for one, two, exact, terms in zip(
        actual, eager, oracle, _sums_of_magnitudes(arguments, upstream), strict=True
    ):
        # Rounded to the dtype of x, the weight's gradient too, and before that summed.
        off = torch.finfo(arguments.x_ND.dtype).eps * largest(exact) + SUM_EPS[subject.device.type] * terms
        worst = max(worst, error_ratio(one, two, exact, scale=off / torch.finfo(one.dtype).eps))
    return worst


def codes_are_multiplied_exactly(subject: Subject, data: Any) -> float:
    """Numbers that are codes already, each row and column with one of +-448, lose nothing in quantisation."""
    dtype, rowwise = _draw_dtype(subject, data), data.draw(st.booleans(), label="rowwise")
    x_ND, weight_OD = (
        fenced((_codes(data) * 2.0 ** data.draw(st.integers(-9, 9))).to(dtype), subject.device)
        for _ in range(2)
    )
    exact = x_ND.double() @ weight_OD.double().T
    actual = subject.function(x_ND, weight_OD, rowwise)
    terms = x_ND.double().abs() @ weight_OD.double().abs().T
    allowed = torch.finfo(dtype).eps * exact.abs() + 2.0 * SUM_EPS[subject.device.type] * terms
    return largest((actual.double() - exact) / allowed.clamp_min(1e-300))


def quantisation_keeps_its_distance(subject: Subject, data: Any) -> float:
    """Through the identity matrix: |y - x| <= 2^-4 |x|, or near zero half of e4m3's smallest step."""
    dtype = _draw_dtype(subject, data)
    rows, width = (data.draw(st.sampled_from((16, 48)), label=label) for label in ("N", "D"))
    x_ND = draw_tensor(data, (rows, width), dtype, subject.device)
    identity_DD = torch.eye(width, dtype=dtype, device=subject.device)
    rowwise = data.draw(st.booleans(), label="rowwise")
    error_ND = subject.function(x_ND, identity_DD, rowwise).double() - x_ND.double()
    amax = x_ND.double().abs().amax(1, keepdim=True) if rowwise else x_ND.double().abs().max()
    relative = 2.0**-4 + torch.finfo(dtype).eps + SUM_EPS[subject.device.type]
    allowed_ND = torch.maximum(relative * x_ND.double().abs(), 1.01 * amax * NARROWEST_CODE)
    return largest(error_ND / allowed_ND.clamp_min(1e-300))


def powers_of_two_pass_through(subject: Subject, data: Any) -> float:
    """f(2^a x, -2^b w) = -2^(a+b) f(x, w), bit for bit: the scales absorb powers of two, codes are odd."""
    arguments = _draw(subject, data, scales=(1.0,))
    a, b = (data.draw(st.integers(-20, 20), label=label) for label in ("a", "b"))
    larger = arguments._replace(
        x_ND=scaled(arguments.x_ND, 2.0**a), weight_OD=scaled(arguments.weight_OD, -(2.0**b))
    )
    assert torch.equal(subject.function(*larger), subject.function(*arguments) * -(2.0 ** (a + b)))
    return 0.0


def gradients_are_linear_upstream(subject: Subject, data: Any) -> float:
    """The gradients for -2^a g are -2^a times those for g, bit for bit."""
    arguments = _draw(subject, data, scales=(1.0,))
    upstream = _draw_upstream(data, arguments)
    factor = -(2.0 ** data.draw(st.integers(-20, 20), label="a"))
    _, *once = _outcome(subject.function, arguments, upstream)
    _, *other = _outcome(subject.function, arguments, scaled(upstream, factor))
    assert all(torch.equal(one * factor, two) for one, two in zip(once, other, strict=True))
    return 0.0


def zeros_stay_zeros(subject: Subject, data: Any) -> float:
    """An operand of zeros gives zeros, not the NaN of a division by its largest magnitude."""
    arguments = _draw(subject, data)
    upstream = torch.zeros_like(_draw_upstream(data, arguments))
    empty = arguments._replace(x_ND=torch.zeros_like(arguments.x_ND))
    output, *found = _outcome(subject.function, empty, upstream)
    assert not any(each.any() for each in (output, *found))
    _, grad_x_ND, grad_weight_OD = _outcome(subject.function, empty, _draw_upstream(data, arguments))
    assert grad_x_ND.isfinite().all()
    assert not grad_weight_OD.any()
    return 0.0


def rowwise_rows_are_independent(subject: Subject, data: Any) -> float:
    """With a scale for each row, a row's output has the same bits whatever the size of the other rows."""
    arguments = _draw(subject, data, scales=(1.0,))._replace(rowwise=True)
    row = data.draw(st.integers(0, arguments.x_ND.shape[0] - 1), label="row")
    others_N1 = torch.arange(arguments.x_ND.shape[0], device=subject.device)[:, None] != row
    louder = arguments._replace(x_ND=torch.where(others_N1, 1000.0 * arguments.x_ND, arguments.x_ND))
    assert torch.equal(subject.function(*louder)[row], subject.function(*arguments)[row])
    return 0.0


def nan_is_not_hidden(subject: Subject, data: Any) -> float:
    """A NaN makes its row of the output NaN, and with one scale for the matrix all of it."""
    arguments = _draw(subject, data, scales=(1.0,), layouts=("contiguous",))
    row, column = (data.draw(st.integers(0, size - 1)) for size in arguments.x_ND.shape)
    spoilt_ND = arguments.x_ND.clone()
    spoilt_ND[row, column] = float("nan")
    output = subject.function(*arguments._replace(x_ND=spoilt_ND))
    assert output[row].isnan().all()
    assert arguments.rowwise or output.isnan().all()
    return 0.0


def leading_dimensions_are_rows(subject: Subject, data: Any) -> float:
    """x [2, N, D] gives the bits of x [2 N, D], forward and backward."""
    arguments = _draw(subject, data)
    folded = arguments._replace(x_ND=torch.stack((arguments.x_ND, arguments.x_ND.flip(0))))
    flat = arguments._replace(x_ND=folded.x_ND.flatten(0, 1))
    upstream = _draw_upstream(data, flat)
    of_flat = _outcome(subject.function, flat, upstream)
    of_folded = _outcome(subject.function, folded, upstream.reshape(2, -1, upstream.shape[1]))
    assert of_folded[0].shape == (*folded.x_ND.shape[:-1], arguments.weight_OD.shape[0])
    assert all(torch.equal(one.reshape(two.shape), two) for one, two in zip(of_folded, of_flat, strict=True))
    return 0.0


def bits_repeat(subject: Subject, data: Any) -> float:
    """The same call twice gives the same bits; the weight's gradient has its dtype, the rest that of x."""
    arguments = _draw(subject, data)
    upstream = _draw_upstream(data, arguments)
    first, second = (_outcome(subject.function, arguments, upstream) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    dtype = arguments.x_ND.dtype
    assert [each.dtype for each in first] == [dtype, dtype, arguments.weight_OD.dtype]
    return 0.0


def _draw_dtype(subject: Subject, data: Any) -> torch.dtype:
    """Not float64, in which no fp8 product is summed."""
    dtypes = [dtype for dtype in subject.dtypes if dtype != torch.float64]
    dtype: torch.dtype = data.draw(st.sampled_from(dtypes), label="dtype")
    return dtype


def _draw(subject: Subject, data: Any, most: int = 3, **options: Any) -> Arguments:
    """Drawn arguments; the weight in the dtype of x or a float32 master, with one louder row and column.

    Args:
        most: the largest size in tiles.
    """
    dtype = _draw_dtype(subject, data)
    of_weight = data.draw(st.sampled_from((dtype, torch.float32)), label="dtype of the weight")
    rows, inputs, outputs = (TILE * data.draw(st.integers(1, most), label=label) for label in ("N", "D", "O"))
    x_ND = draw_tensor(data, (rows, inputs), dtype, subject.device, **options)
    weight_OD = draw_tensor(data, (outputs, inputs), of_weight, subject.device, **options)
    x_ND[data.draw(st.integers(0, rows - 1))] *= 8.0
    weight_OD[:, data.draw(st.integers(0, inputs - 1))] *= 8.0
    return Arguments(x_ND, weight_OD, data.draw(st.booleans(), label="rowwise"))


def _draw_upstream(data: Any, arguments: Arguments) -> Tensor:
    shape = (arguments.x_ND.shape[0], arguments.weight_OD.shape[0])
    return draw_upstream(data, arguments.x_ND.new_empty(shape))


def _codes(data: Any) -> Tensor:
    """[48, 48] random e4m3 codes as float64; +-448 on the diagonal, so in each row and each column."""
    generator = draw_generator(data)
    codes = (100.0 * torch.randn(48, 48, generator=generator)).clamp(-448.0, 448.0).to(FORWARD_DTYPE).double()
    signs = torch.randint(0, 2, (48,), generator=generator).double() * 2.0 - 1.0
    return codes.diagonal_scatter(448.0 * signs)


def _outcome(function: Any, arguments: Arguments, upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of x and of the weight."""
    x_ND, weight_OD = leaf(arguments.x_ND), leaf(arguments.weight_OD)
    output = function(x_ND, weight_OD, arguments.rowwise)
    return [output.detach(), *gradients(output, (x_ND, weight_OD), [upstream])]


def _sums_of_magnitudes(arguments: Arguments, upstream: Tensor) -> list[float]:
    """The largest sum of the magnitudes of what each of the three products adds up."""
    x, weight, grad = arguments.x_ND.double(), arguments.weight_OD.double(), upstream.double()
    pairs = ((x, weight, FORWARD_DTYPE), (grad, weight.T, GRADIENT_DTYPE), (grad.T, x.T, GRADIENT_DTYPE))
    return [
        largest(
            dequantised(a, dtype, arguments.rowwise).abs()
            @ dequantised(b, FORWARD_DTYPE, arguments.rowwise).abs().T
        )
        for a, b, dtype in pairs
    ]


PROPERTIES: tuple[Property, ...] = (
    products_are_those_of_the_codes,
    codes_are_multiplied_exactly,
    quantisation_keeps_its_distance,
    powers_of_two_pass_through,
    gradients_are_linear_upstream,
    zeros_stay_zeros,
    rowwise_rows_are_independent,
    nan_is_not_hidden,
    leading_dimensions_are_rows,
    bits_repeat,
)
