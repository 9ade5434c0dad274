"""The table look-up beyond its properties: refusals, torch's contracts, every dtype of table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels.counting import dispatches
from kernels.dispatch import implementation
from kernels.embedding import _embedding, embedding, sum_rows

Embedding = Callable[..., Tensor]
TOKENS = torch.tensor([[1, 1, 4], [0, 1, 2]])
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=["sorted", "triton"])
def fused(request: pytest.FixtureRequest) -> Embedding:
    if request.param == "triton":
        pytest.importorskip("triton")
    return implementation("embedding", request.param)


def table(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)


BAD: dict[str, tuple[type[Exception], str, Callable[[Tensor], tuple[Any, ...]]]] = {
    "a table of integers": (TypeError, "weight_VD: dtype int64", lambda w: (w.long(), TOKENS, torch.float32)),
    "a vector for a table": (ValueError, "weight_VD: shape", lambda w: (w[0], TOKENS, torch.float32)),
    "tokens that are no ids": (
        TypeError,
        "tokens_BT: dtype float32",
        lambda w: (w, TOKENS.float(), torch.float32),
    ),
    "two devices": (ValueError, "tokens_BT: on meta", lambda w: (w, TOKENS.to("meta"), torch.float32)),
    "an integer output": (TypeError, "dtype: torch.int64", lambda w: (w, TOKENS, torch.int64)),
    "an id past the table": (
        RuntimeError,
        r"tokens_BT: an id outside \[0, 4\)",
        lambda w: (w[:4], TOKENS, torch.float32),
    ),
    "a negative id": (
        RuntimeError,
        r"tokens_BT: an id outside \[0, 5\)",
        lambda w: (w, TOKENS - 1, torch.float32),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str, fused: Embedding) -> None:
    error, said, arguments = BAD[case]
    with pytest.raises(error, match=said):
        fused(*arguments(table()))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (), (2, 1, 3)])
def test_ids_have_any_shape(shape: tuple[int, ...], fused: Embedding) -> None:
    weight = table().requires_grad_()
    rows = fused(weight, torch.full(shape, 4), torch.bfloat16)
    assert rows.shape == (*shape, 3)
    (grad,) = torch.autograd.grad(rows.sum(), weight)
    assert grad[4].tolist() == [torch.Size(shape).numel()] * 3
    assert not grad[:4].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_gradient_has_the_tables_dtype(dtype: torch.dtype) -> None:
    weight = table(dtype).requires_grad_()
    rows = embedding(weight, TOKENS, torch.float32)
    assert torch.autograd.grad(rows.sum(), weight)[0].dtype == dtype


@pytest.mark.parametrize("width", [1, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_in_another_dtype_is_float32s_rounded_once(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(500, width, generator=generator).to(dtype)
    ids = torch.randint(0, 9, (500,), generator=generator)
    exact = torch.zeros(9, width).index_add_(0, ids, rows.float())
    assert torch.equal(sum_rows(rows, ids, 9, torch.float32).to(dtype), sum_rows(rows, ids, 9, dtype))
    torch.testing.assert_close(sum_rows(rows, ids, 9, torch.float32), exact)


def test_gradients_are_the_derivatives() -> None:
    weight = table(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: embedding(weight, TOKENS, torch.float64), weight)


def test_each_call_is_counted(fused: Embedding, request: pytest.FixtureRequest) -> None:
    name = f"embedding/{request.node.callspec.params['fused']}"
    before = dispatches().get(name, 0)
    fused(table(), TOKENS, torch.float32)
    assert dispatches()[name] == before + 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    library.opcheck(_embedding, (table().requires_grad_(), TOKENS, dtype))
    expanded = torch.ones((), dtype=dtype).expand(2, 3, 3)
    for upstream in (torch.randn(2, 3, 3).to(dtype), expanded):
        library.opcheck(sum_rows, (upstream, TOKENS, 5, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_keep_torchs_contract(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.embedding import _embedding, _gradient

    library.opcheck(_embedding, (table().requires_grad_(), TOKENS, dtype))
    expanded = torch.ones((), dtype=dtype).expand(2, 3, 3)
    library.opcheck(_gradient, (expanded, TOKENS, 5, torch.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_it_compiles_whole(fused: Embedding) -> None:
    weight = table().requires_grad_()
    compiled = torch.compile(fused, fullgraph=True)
    actual, expected = (function(weight, TOKENS, torch.bfloat16) for function in (compiled, fused))
    assert torch.equal(actual, expected)
    grads = [torch.autograd.grad(rows.float().square().sum(), weight)[0] for rows in (actual, expected)]
    assert torch.equal(*grads)
