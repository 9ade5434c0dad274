"""What every implementation of `relu(x @ up.T)^2 @ down.T` has to meet, whatever it keeps to go backward.

Shapes: N rows, D model width, F width inside the MLP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import scaled
from bench.proving.drawing import (
    draw_generator,
    draw_tensor,
    draw_upstream,
    fenced,
    gradients,
    leaf,
    sizes,
    whole_rows,
)
from bench.proving.property import Property
from bench.proving.subject import Subject


class Arguments(NamedTuple):
    """The op's arguments, in its order."""

    x_ND: Tensor
    up_FD: Tensor
    down_DF: Tensor


def value_and_gradients_equal_float64(subject: Subject, data: Any) -> float:
    """Output and gradients are the float64 ones up to roundings, for any upstream gradient and layout."""
    arguments = _draw(subject, data, 33)
    return _against_float64(subject, arguments, draw_upstream(data, arguments.x_ND))


def value_of_many_tiles_equals_float64(subject: Subject, data: Any) -> float:
    """The output is the float64 one up to roundings also where several tiles make it up."""
    arguments = _draw(subject, data, 65)
    oracle = subject.reference(*_widened(arguments))
    actual, eager = subject.function(*arguments), subject.reference(*arguments)
    return _ratio(actual, eager, oracle, _roundings(arguments, torch.zeros_like(oracle))[0])


def sums_are_wide(subject: Subject, data: Any) -> float:
    """Long sums of equal signs, which a narrow accumulator would stop, come out right."""
    generator, dtype = draw_generator(data), data.draw(st.sampled_from(subject.dtypes), label="dtype")
    shapes = data.draw(st.sampled_from((((3, 300), (8, 300), (300, 8)), ((300, 4), (8, 4), (4, 8)))))
    drawn = (torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    arguments = Arguments(*(fenced(each, subject.device) for each in drawn))
    upstream = torch.ones((), dtype=dtype, device=subject.device).expand(arguments.x_ND.shape)
    return _against_float64(subject, arguments, upstream)


def rounding_is_unbiased(subject: Subject, data: Any) -> float:
    """Among positive numbers the mean relative error vanishes: bf16 is rounded to, not cut off to."""
    generator, dtype = draw_generator(data), torch.bfloat16
    drawn = (
        (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for shape in ((64, 32), (32, 32), (32, 32), (64, 32))
    )
    *arguments, upstream = (fenced(each, subject.device) for each in drawn)
    actual = _outcome(subject.function, Arguments(*arguments), upstream)
    exact = _outcome(subject.reference, _widened(Arguments(*arguments)), upstream.double())
    # Cutting off the squares alone is off by 2.0 to 2.4 of this (50 seeds), eager torch by at most 0.5 (300).
    allowed = torch.finfo(dtype).eps / 6.0
    return max(
        ((one.double() - two) / two).mean().abs().item() / allowed
        for one, two in zip(actual, exact, strict=True)
    )


def doubled_inputs_quadruple_the_output(subject: Subject, data: Any) -> float:
    """f(2 x) = 4 f(x), bit for bit: powers of two change no rounding."""
    arguments = _draw(subject, data, 33, scales=(1.0,))
    doubled = subject.function(*arguments._replace(x_ND=scaled(arguments.x_ND, 2.0)))
    assert torch.equal(doubled, 4.0 * subject.function(*arguments))
    return 0.0


def gradients_follow_eulers_law(subject: Subject, data: Any) -> float:
    """f is of degree 2 in x and in up and of degree 1 in down: <grad, argument> = degree <upstream, f>."""
    arguments = _draw(subject, data, 17, scales=(1.0,))
    upstream = draw_upstream(data, arguments.x_ND)
    output, *found = _outcome(subject.function, arguments, upstream)
    along = (upstream.double() * output.double()).sum().item()
    roundings = _roundings(arguments, upstream)
    of_output = (upstream.double().abs() * roundings[0]).sum().item()
    worst = 0.0
    for degree, argument, grad, rounding in zip((2, 2, 1), arguments, found, roundings[1:], strict=True):
        # The law holds for the numbers that the op multiplies: weights in the dtype of x.
        argument = argument.to(arguments.x_ND.dtype).double()
        error = abs((grad.double() * argument).sum().item() - degree * along)
        allowed = (rounding * argument.abs()).sum().item() + degree * of_output
        worst = max(worst, error / allowed if allowed else float(error > 0.0))
    return worst


def dead_neurons_get_no_gradient(subject: Subject, data: Any) -> float:
    """Where every pre-activation is negative, the neuron's rows of both weights' gradients are exactly 0."""
    arguments = _draw(subject, data, 33, layouts=("contiguous",))
    alive_F1 = torch.rand(arguments.up_FD.shape[0], 1, generator=draw_generator(data)) < 0.5
    alive_F1 = alive_F1.to(subject.device)
    up_FD = torch.where(alive_F1, arguments.up_FD.abs(), -arguments.up_FD.abs())
    arguments = Arguments(arguments.x_ND.abs(), up_FD, arguments.down_DF)
    upstream = draw_upstream(data, arguments.x_ND)
    _, _, grad_up_FD, grad_down_DF = _outcome(subject.function, arguments, upstream)
    dead_F = ~alive_F1[:, 0]
    assert not grad_up_FD[dead_F].any()
    assert not grad_down_DF[:, dead_F].any()
    return 0.0


def gradients_are_linear_upstream(subject: Subject, data: Any) -> float:
    """The gradients for -2 g are -2 times those for g, bit for bit."""
    arguments = _draw(subject, data, 33, scales=(1.0,))
    upstream = draw_upstream(data, arguments.x_ND)
    _, *once = _outcome(subject.function, arguments, upstream)
    _, *twice = _outcome(subject.function, arguments, scaled(upstream, -2.0))
    assert all(torch.equal(-2.0 * one, two) for one, two in zip(once, twice, strict=True))
    return 0.0


def rows_are_independent(subject: Subject, data: Any) -> float:
    """A NaN makes all of its own row NaN and leaves the others' bits alone."""
    arguments = _draw(subject, data, 33, scales=(1.0,), layouts=("contiguous",))
    clean = subject.function(*arguments)
    row = data.draw(st.integers(0, clean.shape[0] - 1), label="row")
    spoilt_ND = arguments.x_ND.clone()
    spoilt_ND[row, data.draw(st.integers(0, clean.shape[1] - 1), label="column")] = float("nan")
    spoilt = subject.function(*arguments._replace(x_ND=spoilt_ND))
    others = torch.arange(clean.shape[0], device=subject.device) != row
    assert spoilt[row].isnan().all()
    assert torch.equal(spoilt[others], clean[others])
    return 0.0


def masters_are_cast(subject: Subject, data: Any) -> float:
    """float32 weights act as their casts to the dtype of x, and get float32 gradients."""
    masters = _draw(subject, data, 17, masters=(torch.float32,))
    dtype = masters.x_ND.dtype
    cast = Arguments(*(each.to(dtype) for each in masters))
    upstream = draw_upstream(data, masters.x_ND)
    output, *of_masters = _outcome(subject.function, masters, upstream)
    output_of_cast, *of_cast = _outcome(subject.function, cast, upstream)
    assert torch.equal(output, output_of_cast)
    assert [grad.dtype for grad in of_masters] == [dtype, torch.float32, torch.float32]
    worst = 0.0
    for one, two in zip(of_masters, of_cast, strict=True):
        error, size = largest(one.double() - two.double()), largest(two)
        allowed = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * size
        worst = max(worst, error / allowed if allowed else float(error > 0.0))
    return worst


def leading_dimensions_are_rows(subject: Subject, data: Any) -> float:
    """x [2, N, D] gives the bits of x [2 N, D], forward and backward; one row [D] gives one row."""
    arguments = _draw(subject, data, 17)
    x_BTD = torch.stack((arguments.x_ND, arguments.x_ND.flip(0)))
    upstream = draw_upstream(data, x_BTD)
    flat = arguments._replace(x_ND=x_BTD.flatten(0, 1))
    of_folded = _outcome(subject.function, arguments._replace(x_ND=x_BTD), upstream)
    of_flat = _outcome(subject.function, flat, upstream.flatten(0, 1))
    assert of_folded[0].shape == x_BTD.shape
    assert all(torch.equal(one.reshape(two.shape), two) for one, two in zip(of_folded, of_flat, strict=True))
    assert subject.function(*arguments._replace(x_ND=x_BTD[0, 0])).shape == x_BTD[0, 0].shape
    return 0.0


def bits_repeat(subject: Subject, data: Any) -> float:
    """The same call twice gives the same bits, gradients included."""
    arguments = _draw(subject, data, 65)
    upstream = draw_upstream(data, arguments.x_ND)
    first, second = (_outcome(subject.function, arguments, upstream) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    return 0.0


def _draw(
    subject: Subject, data: Any, most: int, *, masters: tuple[torch.dtype, ...] = (), **options: Any
) -> Arguments:
    """Drawn arguments with sizes up to `most`; weights in the dtype of x, or float32 masters."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    weights = data.draw(st.sampled_from(masters or (dtype, torch.float32)), label="dtype of the weights")
    rows, width, inner = (data.draw(sizes(most), label=label) for label in ("N", "D", "F"))
    width, inner = (whole_rows(size, dtype, subject.device) for size in (width, inner))
    x_ND = draw_tensor(data, (rows, width), dtype, subject.device, **options)
    up_FD = draw_tensor(data, (inner, width), weights, subject.device, **options)
    down_DF = draw_tensor(data, (width, inner), weights, subject.device, **options)
    return Arguments(x_ND, up_FD, down_DF)


def _widened(arguments: Arguments) -> Arguments:
    """In float64, after the weights' cast to the dtype of x, which belongs to the op."""
    return Arguments(*(each.to(arguments.x_ND.dtype).double() for each in arguments))


def _outcome(function: Any, arguments: Arguments, upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of all three arguments."""
    leaves = [leaf(each) for each in arguments]
    output = function(*leaves)
    return [output.detach(), *gradients(output, leaves, [upstream])]


def _against_float64(subject: Subject, arguments: Arguments, upstream: Tensor) -> float:
    actual = _outcome(subject.function, arguments, upstream)
    eager = _outcome(subject.reference, arguments, upstream)
    oracle = _outcome(subject.reference, _widened(arguments), upstream.double())
    return max(map(_ratio, actual, eager, oracle, _roundings(arguments, upstream)))


def _ratio(actual: Tensor, eager: Tensor, oracle: Tensor, rounding: Tensor) -> float:
    """`error_ratio` that allows what rounding may do whatever eager's luck was."""
    return error_ratio(
        actual, eager, oracle, scale=largest(rounding) / torch.finfo(actual.dtype).eps + largest(oracle)
    )


def _roundings(arguments: Arguments, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What roundings may do to the output and to each gradient, to first order, element by element.

    Every stored number is off by half an epsilon of the dtype of x, every sum by some epsilons of its terms'
    magnitudes in the accumulator's dtype, and what is off already is carried along.
    """
    dtype = arguments.x_ND.dtype
    stored = torch.finfo(dtype).eps / 2.0
    summed = 4.0 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # Squares below the smallest number are lost, and with them the root that the derivative is.
    lost = torch.finfo(dtype).tiny ** 0.5
    (x, up, down), grad = _widened(arguments), upstream.double()
    size_x, size_up, size_down, size_grad = (each.abs() for each in (x, up, down, grad))

    pre = x @ up.T
    off_pre = stored * pre.abs() + summed * size_x @ size_up.T
    root = pre.relu()
    post = root.square()
    off_post = (2.0 * root + off_pre) * off_pre + stored * post
    off_output = off_post @ size_down.T + summed * post @ size_down.T + stored * (post @ down.T).abs()

    grad_post = grad @ down
    off_grad_post = summed * size_grad @ size_down + stored * grad_post.abs()
    grad_pre = 2.0 * grad_post * root
    off_root = off_pre + stored * root + lost
    off_grad_pre = 2.0 * ((grad_post.abs() + off_grad_post) * off_root + off_grad_post * root)
    off_grad_pre = off_grad_pre + stored * grad_pre.abs()
    off = off_grad_pre + summed * grad_pre.abs()
    off_x = off @ size_up + stored * (grad_pre @ up).abs()
    stored = max(stored, torch.finfo(arguments.up_FD.dtype).eps / 2.0)  # of the masters' gradients
    off_up = off.T @ size_x + stored * (grad_pre.T @ x).abs()
    off_down = size_grad.T @ (off_post + summed * post) + stored * (grad.T @ post).abs()
    return off_output, off_x, off_up, off_down


PROPERTIES: tuple[Property, ...] = (
    value_and_gradients_equal_float64,
    value_of_many_tiles_equals_float64,
    sums_are_wide,
    rounding_is_unbiased,
    doubled_inputs_quadruple_the_output,
    gradients_follow_eulers_law,
    dead_neurons_get_no_gradient,
    gradients_are_linear_upstream,
    rows_are_independent,
    masters_are_cast,
    leading_dimensions_are_rows,
    bits_repeat,
)
