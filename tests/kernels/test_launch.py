"""Launching in the interpreter: bf16 is widened exactly and rounded to nearest, whatever the strides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.proving.drawing import LAYOUTS, fenced

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
launching = pytest.importorskip("kernels.triton_ops.launch")
CONFIG = launching.Config({"BLOCK": 16})


@triton.jit
def _scale_kernel(x_ptr, y_ptr, factor, rows, columns, x_row, x_column, y_row, y_column, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row + column * x_column, mask=column < columns, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_row + column * y_column, x * factor, mask=column < columns)


@triton.jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision="ieee"))


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 16)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
)
def test_what_a_kernel_writes_is_rounded_to_nearest(
    seed: int, shape: tuple[int, int], dtype: torch.dtype, layouts: tuple[str, str]
) -> None:
    """1.0009765625 has more bits than bf16: products land between its numbers, on either side."""
    generator, cpu = torch.Generator().manual_seed(seed), torch.device("cpu")
    x = fenced(torch.randn(shape, generator=generator).to(dtype), cpu, layouts[0])
    y = fenced(torch.zeros(shape, dtype=dtype), cpu, layouts[1])
    arguments = (x, y, 1.0009765625, *shape, *x.stride(), *y.stride())
    launching.launch(_scale_kernel, (shape[0],), arguments, (1,), CONFIG)
    assert torch.equal(y, (x.float() * 1.0009765625).to(dtype))


def test_an_expanded_argument_is_read_as_it_is() -> None:
    x, y = torch.ones((), dtype=torch.bfloat16).expand(3, 4), torch.zeros(3, 4, dtype=torch.bfloat16)
    launching.launch(_scale_kernel, (3,), (x, y, 2.0, 3, 4, *x.stride(), *y.stride()), (1,), CONFIG)
    assert (y == 2).all()


def test_a_bf16_product_is_one_of_its_numbers_not_of_its_bits() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).unbind()
    c = torch.zeros(16, 16)
    launching.launch(_dot_kernel, (1,), (a, b, c), (2,), CONFIG)
    torch.testing.assert_close(c, a.float() @ b.float())


def test_an_empty_grid_launches_nothing() -> None:
    launching.launch(_scale_kernel, (0,), (), (), CONFIG)


def test_without_the_interpreter_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        launching.launch(_dot_kernel, (1,), (torch.zeros(16, 16),), (), CONFIG)
