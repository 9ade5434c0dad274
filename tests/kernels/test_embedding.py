"""Table look-up: rows in the compute dtype, and a float32 gradient that sums a row's uses, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.embedding import _embedding, _embedding_gradient, embedding

DTYPES = (torch.float32, torch.bfloat16)


def gradient(function, weight: Tensor, tokens: Tensor, dtype: torch.dtype, upstream: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    weight = weight.detach().requires_grad_()
    return torch.autograd.grad(function(weight, tokens, dtype), weight, upstream)[0]


@given(
    seed=st.integers(0, 10**6),
    table=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 6)),
    dtype=st.sampled_from(DTYPES),
)
def test_rows_and_their_gradient(
    seed: int, table: tuple[int, int], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(table, generator=generator)
    tokens = torch.randint(0, table[0], shape, generator=generator)
    upstream = torch.randn(*shape, table[1], generator=generator).to(dtype)
    assert torch.equal(embedding(weight, tokens, dtype), reference.embedding(weight, tokens, dtype))
    grad = gradient(embedding, weight, tokens, dtype, upstream)
    expected = torch.zeros(table, dtype=torch.float64)
    for token, row in zip(tokens.flatten().tolist(), upstream.double().flatten(0, 1), strict=True):
        expected[token] += row
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_same_bits_every_time(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(50, 64), torch.randint(0, 50, (16, 256))
    upstream = torch.randn(16, 256, 64).to(dtype)
    first = gradient(embedding, weight, tokens, dtype, upstream)
    for _ in range(5):
        assert torch.equal(gradient(embedding, weight, tokens, dtype, upstream), first)


def test_an_expanded_upstream_gradient_is_read_right() -> None:
    weight, tokens = torch.randn(5, 3), torch.tensor([[1, 1, 4], [0, 1, 2]])
    upstream = torch.tensor([1.0, 2.0, 4.0])
    actual = gradient(embedding, weight, tokens, torch.float32, upstream.expand(2, 3, 3))
    counts = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0])
    assert torch.equal(actual, counts[:, None] * upstream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    weight, tokens = torch.randn(5, 3), torch.tensor([[1, 1, 4], [0, 1, 2]])
    torch.library.opcheck(_embedding, (weight.requires_grad_(), tokens, dtype))
    torch.library.opcheck(_embedding_gradient, (torch.randn(2, 3, 3).to(dtype), tokens, 5))
