"""relu squared: the output, and a gradient rebuilt from the output alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.relu_squared import relu_squared

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def value_and_gradient(function, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, upstream)[0]


@given(
    seed=st.integers(0, 10**6),
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    dtype=st.sampled_from(DTYPES),
    expanded=st.booleans(),
)
def test_value_and_gradient(
    seed: int, shape: list[int], scale: float, dtype: torch.dtype, expanded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    upstream = (
        torch.randn([] if expanded else shape, generator=generator, dtype=torch.float64)
        .to(dtype)
        .expand(shape)
    )
    y, grad = value_and_gradient(relu_squared, x, upstream)
    exact_y, exact_grad = value_and_gradient(reference.relu_squared, x.double(), upstream.double())
    assert y.dtype == grad.dtype == dtype
    assert torch.equal(y, reference.relu_squared(x))
    # Two roundings more than the exact gradient: the stored square, halved by the root, and the products.
    smallest = torch.finfo(dtype).tiny
    torch.testing.assert_close(grad.double(), exact_grad, rtol=2 * torch.finfo(dtype).eps, atol=4 * smallest)
    torch.testing.assert_close(y.double(), exact_y, rtol=torch.finfo(dtype).eps, atol=smallest)
    assert not grad[x <= 0].any()


def test_the_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(relu_squared, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_output_is_kept(dtype: torch.dtype) -> None:
    kept: list[Tensor] = []
    x = torch.randn(8, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = relu_squared(x)
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]


def test_a_nan_is_not_hidden() -> None:
    assert relu_squared(torch.tensor([float("nan")])).isnan().all()
