"""Blocked causal attention: equal to the dense mask, whatever the window, block, groups and strides."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.dispatch import full_or_blocked_attention
from kernels.sliding_window_attention import sliding_window_attention
from tests.kernels.bounds import assert_close_as_eager, largest

IMPLEMENTATIONS = (
    sliding_window_attention,
    partial(sliding_window_attention, block=4),
    full_or_blocked_attention,
)


def heads(
    seed: int, tokens: int, num_heads: int, num_kv_heads: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k, v of two rows and head dimension 6, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    counts = (num_heads, num_kv_heads, num_kv_heads, num_heads)
    return [
        torch.randn(2, tokens, count, 6, generator=generator, dtype=torch.float64).to(dtype)
        for count in counts
    ]


def outputs(function, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, window: int) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """The output and the three gradients."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    y = function(q, k, v, window)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), upstream)]


@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(1, 21),
    window=st.sampled_from([0, 1, 5, 9, 20, 21, 1000]),
    block=st.sampled_from([1, 3, 5, 8, 64]),
    groups=st.sampled_from([(4, 4), (4, 2), (3, 1), (1, 1)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_output_and_gradients_are_as_close_to_float64_as_eager(
    seed: int, tokens: int, window: int, block: int, groups: tuple[int, int], dtype: torch.dtype
) -> None:
    inputs = heads(seed, tokens, *groups, dtype=dtype)
    eager = outputs(reference.sliding_window_attention, *inputs, window)
    oracle = outputs(reference.sliding_window_attention, *(x.double() for x in inputs), window)
    # The softmax's backward subtracts two sums of upstream times value; eager's are equal for one key.
    product = 1.0 if dtype == torch.bfloat16 else math.prod(map(largest, inputs))
    scale = max(product, *map(largest, oracle))
    for function in (partial(sliding_window_attention, block=block), full_or_blocked_attention):
        for actual, baseline, exact in zip(outputs(function, *inputs, window), eager, oracle, strict=True):
            assert_close_as_eager(actual, baseline, exact, factor=2, ulps=2, scale=scale)


@pytest.mark.parametrize("window", [0, 3, 11, 12])
def test_gradients_are_the_derivatives(window: int) -> None:
    q, k, v, _ = heads(0, 12, 2, 1)
    inputs = [x[:1, :, :, :3].requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: sliding_window_attention(q, k, v, window, block=5), inputs
    )


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [0, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_out_of_sight_change_no_bit(function, window: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    q, k, v, _ = heads(0, 14, 2, 1, dtype)
    before = function(q, k, v, window)
    for query in range(14):
        unseen = torch.ones(14, dtype=torch.bool)
        unseen[max(0, query - window) : query + 1] = False
        noise = torch.where(unseen[:, None, None], 50.0, 0.0).to(dtype)
        assert torch.equal(function(q, k + noise, v - noise, window)[:, query], before[:, query])


@pytest.mark.parametrize("window", [0, 3, 100])
def test_every_key_in_sight_counts(window: int) -> None:
    q, k, v, _ = heads(0, 14, 2, 1)
    before = sliding_window_attention(q, k, v, window, block=4)
    for key in range(14):
        other = v.clone()
        other[:, key] += 1.0
        moved = (sliding_window_attention(q, k, other, window, block=4) != before).flatten(2).any(2).any(0)
        assert moved.tolist() == [key <= query <= key + window for query in range(14)]


@pytest.mark.parametrize("window", [0, 4, 100])
def test_the_block_changes_nothing(window: int) -> None:
    inputs = heads(0, 17, 4, 2)
    expected = outputs(sliding_window_attention, *inputs, window)
    for block in (1, 2, 5, 16, 17, 18):
        for x, y in zip(
            outputs(partial(sliding_window_attention, block=block), *inputs, window), expected, strict=True
        ):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("window", [2, 100])
@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_strides_do_not_matter(function, window: int) -> None:  # type: ignore[no-untyped-def]
    q, k, v, _ = heads(0, 9, 2, 2)
    packed = torch.cat((q, k, v), dim=-1)
    views = packed.split(6, dim=-1)
    one = torch.tensor(1.0, dtype=torch.float64).expand(q.shape)
    expected = outputs(function, q, k, v, one.contiguous(), window)
    for x, y in zip(outputs(function, *views, one, window), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_equal_values_are_their_own_mean() -> None:
    q, k, v, _ = heads(0, 9, 2, 2)
    constant = v[:, :1].expand(v.shape)
    torch.testing.assert_close(sliding_window_attention(q, k, constant, 3, block=4), constant)
