"""Checks of arguments: what is right passes, what is wrong is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arguments import require, require_device, require_dtype, require_ids, require_shape


def test_what_is_right_passes() -> None:
    x = torch.zeros(2, 3)
    require(True, "x", "never")
    require_dtype("x", x, (torch.bfloat16, torch.float32))
    require_shape("x", x, (2, None))
    require_device("x", x, x)
    require_ids("ids", torch.tensor([0, 4, -1]), 5, ignored=-1)
    require_ids("ids", torch.empty(0, dtype=torch.int64), 1)


def test_what_is_wrong_is_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^x: too small$"):
        require(False, "x", "too small")
    with pytest.raises(TypeError, match=r"^x: dtype float32, expected float64, bfloat16$"):
        require_dtype("x", x, (torch.float64, torch.bfloat16))
    with pytest.raises(ValueError, match=r"^x: shape \[2, 3\], expected \[any, 4\]$"):
        require_shape("x", x, (None, 4))
    with pytest.raises(ValueError, match=r"expected \[2\]"):
        require_shape("x", x, (2,))
    with pytest.raises(ValueError, match=r"^x: on meta"):
        require_device("x", x.to("meta"), x)


@given(ids=st.lists(st.integers(-3, 6), min_size=1, max_size=8), num_ids=st.integers(1, 5))
def test_ids_outside_the_table_stop_the_run(ids: list[int], num_ids: int) -> None:
    tensor = torch.tensor(ids)
    if all(0 <= i < num_ids or i == -1 for i in ids):
        require_ids("ids", tensor, num_ids, ignored=-1)
    else:
        with pytest.raises(RuntimeError, match="ids: an id outside"):
            require_ids("ids", tensor, num_ids, ignored=-1)
