"""Polar Express in both forms: a known polynomial of the singular values, odd, and blind to rotation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.polar_express import _gram_form, _standard_form, polar_express
from tests.kernels.bounds import assert_close_as_eager

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (8, 32), (32, 8), (9, 17), (9, 18), (9, 19), (12, 16)]


def conditioned(seed: int, shape: tuple[int, int], smallest: float = 0.05) -> Tensor:
    """Two matrices with singular values from 1 down to `smallest`, float64."""
    generator = torch.Generator().manual_seed(seed)
    U, _, Vh = torch.linalg.svd(
        torch.randn(2, *shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    return U * torch.logspace(0, torch.tensor(smallest).log10().item(), min(shape), dtype=torch.float64) @ Vh


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)) | st.sampled_from(SHAPES),
    steps=st.integers(0, 5),
    scale=st.sampled_from([1e-2, 1.0, 1e4]),
)
def test_float64_is_the_reference(seed: int, shape: tuple[int, int], steps: int, scale: float) -> None:
    G = conditioned(seed, shape) * scale
    torch.testing.assert_close(
        polar_express(G, steps), reference.polar_express(G, steps), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_close_to_float64_as_eager(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(10):
        G = conditioned(seed, shape).to(dtype)
        actual, eager, oracle = (
            polar_express(G),
            reference.polar_express(G),
            reference.polar_express(G.double()),
        )
        # Float32: the Gram form loses up to 1e2 against the standard form (measured 2e-4 against 9e-6).
        ulps = 2e3 if dtype == torch.float32 else 4
        assert_close_as_eager(actual, eager, oracle, factor=3, ulps=ulps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_land_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """p(s) of the five steps is in [0.8589, 1.1412] for s from 1e-3 to 1."""
    for seed in range(10):
        s = torch.linalg.svdvals(polar_express(conditioned(seed, shape).to(dtype)).double())
        assert s.min() >= 0.85
        assert s.max() <= 1.15


@pytest.mark.parametrize("shape", [(8, 16), (8, 32), (64, 256), (32, 8), (32, 32)])
@pytest.mark.parametrize("smallest", [1e-3, 1e-7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ill_conditioned_gradients_do_not_blow_up(
    shape: tuple[int, int], smallest: float, dtype: torch.dtype
) -> None:
    """Gradients are nearly of low rank; what rounding makes of a zero must not be amplified past 1."""
    G = conditioned(0, shape, max(smallest, 1e-30))
    if not smallest:
        G = G[..., :2] @ torch.ones(2, 2, shape[1] // 2, dtype=torch.float64).repeat(1, 1, 2)
    s = torch.linalg.svdvals(polar_express(G.to(dtype)).double())
    assert s.max() <= 1.16
    assert s[..., 0].min() >= 0.85


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_odd_and_batched(shape: tuple[int, int], dtype: torch.dtype) -> None:
    G = conditioned(0, shape).to(dtype)
    assert torch.equal(polar_express(-G), -polar_express(G))
    alone = torch.cat([polar_express(g[None]) for g in G])
    torch.testing.assert_close(polar_express(G), alone)


@pytest.mark.parametrize("shape", SHAPES)
def test_transposing_or_rotating_commutes(shape: tuple[int, int]) -> None:
    G = conditioned(0, shape)
    torch.testing.assert_close(polar_express(G.mT), polar_express(G).mT, rtol=1e-10, atol=1e-11)
    Q = torch.linalg.qr(torch.randn(shape[0], shape[0], dtype=torch.float64)).Q
    torch.testing.assert_close(polar_express(Q @ G), Q @ polar_express(G), rtol=1e-9, atol=1e-10)


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    steps=st.integers(0, 5),
)
def test_both_forms_are_one_polynomial(seed: int, shape: tuple[int, int], steps: int) -> None:
    X = conditioned(seed, shape) / 3.0
    coefficients = reference.POLAR_EXPRESS_COEFFICIENTS[:steps]
    expected = _standard_form(X, coefficients)
    torch.testing.assert_close(_gram_form(X, coefficients), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_stays_zero(shape: tuple[int, int], dtype: torch.dtype) -> None:
    G = conditioned(0, shape).to(dtype)
    G[0] = 0
    assert not polar_express(G)[0].any()
    torch.testing.assert_close(polar_express(G)[1:], polar_express(G[1:]))


def test_the_input_is_left_alone() -> None:
    G = conditioned(0, (6, 15))
    before = G.clone()
    polar_express(G)
    assert torch.equal(G, before)
