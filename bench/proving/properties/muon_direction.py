"""What holds of the Nesterov momentum.

Shapes: S stacked matrices of M x P.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import require_intact_fence, scaled, twin
from bench.proving.drawing import draw_tensor, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject

MOMENTA = (0.0, 0.3, 0.85, 0.95)


def draw_dtype(data: Any, subject: Subject) -> torch.dtype:
    """One of the subject's dtypes."""
    dtype: torch.dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    return dtype


def draw_shape(data: Any) -> list[int]:
    """[S, M, P]."""
    return [data.draw(st.integers(1, 3)), data.draw(sizes(70), label="M"), data.draw(sizes(70), label="P")]


def draw_pair(data: Any, subject: Subject, dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor]:
    """(gradients, momentum) of one shape and one scale, each in its own layout."""
    scale = data.draw(st.sampled_from((1e-4, 1.0, 1e4)), label="scale")
    shape = draw_shape(data)
    grads, momentum = (
        draw_tensor(data, shape, dtype, subject.device, scales=(scale,), **options) for _ in range(2)
    )
    return grads, momentum


def run(
    function: Any, grads: Tensor, momentum: Tensor, beta: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(direction, new momentum); the arguments stay as they are."""
    memory = twin(momentum)
    return function(grads, memory, beta, dtype), memory


def value(subject: Subject, data: Any) -> float:
    """Direction and momentum are as close to float64 as eager's, the direction in any dtype asked for."""
    dtype, beta = draw_dtype(data, subject), data.draw(st.sampled_from(MOMENTA), label="momentum")
    grads, momentum = draw_pair(data, subject, dtype)
    asked = data.draw(st.sampled_from((None, *subject.dtypes)), label="dtype of the direction")
    actual = run(subject.function, grads, momentum, beta, asked)
    eager = run(subject.reference, grads, momentum, beta, asked)
    assert actual[0].dtype == eager[0].dtype
    oracle = run(subject.reference, grads.double(), momentum.double(), beta)
    scale = largest(grads.double().abs() + momentum.double().abs())
    return max(
        error_ratio(actual[0], eager[0], oracle[0], ulps=4, scale=scale),
        error_ratio(actual[1], eager[1], oracle[1], ulps=2, scale=scale),
    )


def zero_gradients_let_the_momentum_decay(subject: Subject, data: Any) -> float:
    """After k steps without a gradient the momentum is beta^k of what it was, the direction beta^(k + 1)."""
    dtype, beta = draw_dtype(data, subject), data.draw(st.sampled_from(MOMENTA), label="momentum")
    _, momentum = draw_pair(data, subject, dtype)
    steps, memory = data.draw(st.integers(1, 4), label="k"), twin(momentum)
    for _ in range(steps):
        direction = subject.function(torch.zeros_like(momentum), memory, beta)
    expected = momentum.double() * beta**steps
    unit: float = 2 * (steps + 1) * torch.finfo(dtype).eps * (largest(momentum) or 1.0)
    return max(largest(memory.double() - expected), largest(direction.double() - beta * expected)) / unit


def a_constant_gradient_is_its_own_momentum(subject: Subject, data: Any) -> float:
    """Where gradient and momentum are equal both stay, bit for bit."""
    grads, _ = draw_pair(data, subject, draw_dtype(data, subject))
    beta = data.draw(st.sampled_from(MOMENTA), label="momentum")
    direction, memory = run(subject.function, grads, grads, beta)
    assert torch.equal(direction, grads)
    assert torch.equal(memory, grads)
    return 0.0


def scaling_and_sign_commute(subject: Subject, data: Any) -> float:
    """f(c g, c m) = c f(g, m), bit for bit for c a power of two, positive or negative."""
    options: dict[str, Any] = {"contents": ("normal", "repeated")}
    grads, momentum = draw_pair(data, subject, draw_dtype(data, subject), **options)
    beta = data.draw(st.sampled_from(MOMENTA), label="momentum")
    c = data.draw(st.sampled_from((-1.0, 4.0, -0.5)), label="c")
    larger = run(subject.function, scaled(grads, c), scaled(momentum, c), beta)
    plain = run(subject.function, grads, momentum, beta)
    assert all(torch.equal(one, c * other) for one, other in zip(larger, plain, strict=True))
    return 0.0


def matrices_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A stack is its matrices one by one."""
    dtype, beta = draw_dtype(data, subject), data.draw(st.sampled_from(MOMENTA), label="momentum")
    grads, momentum = draw_pair(data, subject, dtype, contents=("normal",))
    direction, memory = run(subject.function, grads, momentum, beta)
    ratios = []
    for i in range(len(grads)):
        alone, its_memory = run(subject.function, grads[i : i + 1], momentum[i : i + 1], beta)
        assert torch.equal(its_memory, memory[i : i + 1])
        ratios.append(error_ratio(alone, direction[i : i + 1], direction[i : i + 1], ulps=4))
    return max(ratios)


def the_direction_is_rounded_once(subject: Subject, data: Any) -> float:
    """Asked for in bf16, it is the direction in the gradients' dtype, rounded; the momentum is the same."""
    dtype, beta = draw_dtype(data, subject), data.draw(st.sampled_from(MOMENTA), label="momentum")
    grads, momentum = draw_pair(data, subject, dtype)
    exact, memory = run(subject.function, grads, momentum, beta)
    rounded, same = run(subject.function, grads, momentum, beta, torch.bfloat16)
    assert torch.equal(memory, same)
    assert torch.equal(rounded, exact.bfloat16())
    return 0.0


def only_the_momentum_is_changed(subject: Subject, data: Any) -> float:
    """Gradients, and what lies around the momentum, stay as they are; the direction is another tensor."""
    grads, momentum = draw_pair(data, subject, draw_dtype(data, subject))
    given, memory = twin(grads), twin(momentum)
    direction = subject.function(given, memory, 0.9)
    assert torch.equal(given, grads)
    require_intact_fence(given, grads)
    require_intact_fence(memory, momentum)
    assert direction.untyped_storage().data_ptr() not in (
        given.untyped_storage().data_ptr(),
        memory.untyped_storage().data_ptr(),
    )
    return 0.0


PROPERTIES: tuple[Property, ...] = (
    value,
    zero_gradients_let_the_momentum_decay,
    a_constant_gradient_is_its_own_momentum,
    scaling_and_sign_commute,
    matrices_do_not_know_each_other,
    the_direction_is_rounded_once,
    only_the_momentum_is_changed,
)
