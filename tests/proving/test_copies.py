"""Copies have the layout and the fence of what they were made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.copies import require_intact_fence, scaled, twin
from bench.proving.drawing import FENCE, LAYOUTS, draw_tensor, draw_upstream

CPU = torch.device("cpu")
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def drawn(data: st.DataObject) -> Tensor:
    tensor = draw_tensor(data, data.draw(SHAPES), torch.float32, CPU)
    return draw_upstream(data, tensor) if data.draw(st.booleans()) else tensor


@given(data=st.data())
def test_scaling_keeps_the_layout(data: st.DataObject) -> None:
    tensor = drawn(data)
    larger = scaled(tensor, -2.0)
    assert torch.equal(larger, -2.0 * tensor)
    assert (larger.stride(), larger.storage_offset()) == (tensor.stride(), tensor.storage_offset())
    assert larger.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()


@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_a_write_outside_of_the_elements_is_found(data: st.DataObject, layout: str) -> None:
    before = draw_tensor(data, (2, 3), torch.float32, CPU, layouts=(layout,))
    changed = twin(before)
    changed.add_(1.0)
    require_intact_fence(changed, before)
    changed.as_strided((1,), (1,), FENCE - 1).zero_()
    with pytest.raises(AssertionError, match="outside"):
        require_intact_fence(changed, before)
