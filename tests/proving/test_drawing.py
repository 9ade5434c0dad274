"""Drawn tensors: the numbers asked for, in awkward layouts, and NaN all around them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.proving.drawing import FENCE, LAYOUTS, draw_tensor, draw_upstream, fenced, sizes

CPU = torch.device("cpu")


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_a_fence_changes_no_number(shape: list[int], layout: str, dtype: torch.dtype) -> None:
    values = (
        torch.arange(max(torch.Size(shape).numel(), 1))[: torch.Size(shape).numel()].view(shape).to(dtype)
    )
    tensor = fenced(values, CPU, layout)
    assert torch.equal(tensor, values)
    assert tensor.dtype == dtype


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), layout=st.sampled_from(LAYOUTS))
def test_whoever_reads_past_a_tensor_meets_nan(shape: list[int], layout: str) -> None:
    tensor = fenced(torch.ones(shape), CPU, layout)
    storage = torch.empty(0).set_(tensor.untyped_storage())
    assert storage[:FENCE].isnan().all()
    assert storage[-FENCE:].isnan().all()
    assert storage.isnan().sum() == storage.numel() - tensor.numel()


@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_every_draw_is_whole(data: st.DataObject, shape: list[int]) -> None:
    tensor = draw_tensor(data, shape, torch.bfloat16, CPU)
    assert list(tensor.shape) == shape
    assert tensor.isfinite().all()
    upstream = draw_upstream(data, tensor)
    assert upstream.shape == tensor.shape
    assert upstream.dtype == tensor.dtype
    assert upstream.isfinite().all()


@given(data=st.data(), largest=st.integers(1, 70))
def test_sizes_stay_below_the_largest(data: st.DataObject, largest: int) -> None:
    assert 1 <= data.draw(sizes(largest)) <= largest
