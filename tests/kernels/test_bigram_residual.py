"""The bigram residual beyond its properties: refusals and torch's contracts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels.bigram_residual import _bigram_residual, _gradients, bigram_residual
from kernels.counting import dispatches
from kernels.dispatch import implementation

Bigram = Callable[..., Tensor]
TOKENS = torch.tensor([[1, 131_071, 4], [59_138, 1, 2]])


@pytest.fixture(params=["sorted", "triton"])
def fused(request: pytest.FixtureRequest) -> Bigram:
    if request.param == "triton":
        pytest.importorskip("triton")
    return implementation("bigram_residual", request.param)


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A stream of two rows of three tokens, a table of 7 rows, its tokens and the strength."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, table = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 5), (7, 5)))
    return x.to(dtype), table.to(wide), TOKENS, torch.tensor(0.3, dtype=wide)


BAD: dict[str, tuple[type[Exception], str, Callable[..., tuple[Any, ...]]]] = {
    "a stream of integers": (TypeError, "x_BTD: dtype int64", lambda x, w, t, s: (x.long(), w, t, s)),
    "a flat stream": (ValueError, "x_BTD: shape", lambda x, w, t, s: (x.flatten(0, 1), w, t, s)),
    "a narrower table": (ValueError, "table_RD: shape", lambda x, w, t, s: (x, w[:, 1:], t, s)),
    "a table of one row": (ValueError, "table_RD: fewer than 2", lambda x, w, t, s: (x, w[:1], t, s)),
    "fewer tokens": (ValueError, "tokens_BT: shape", lambda x, w, t, s: (x, w, t[:, 1:], s)),
    "tokens that are no ids": (TypeError, "tokens_BT: dtype", lambda x, w, t, s: (x, w, t.float(), s)),
    "a strength in bf16": (TypeError, "strength: dtype", lambda x, w, t, s: (x, w, t, s.bfloat16())),
    "two strengths": (ValueError, "strength: shape", lambda x, w, t, s: (x, w, t, s.expand(2))),
    "two devices": (ValueError, "table_RD: on meta", lambda x, w, t, s: (x, w.to("meta"), t, s)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str, fused: Bigram) -> None:
    error, said, bad = BAD[case]
    with pytest.raises(error, match=said):
        fused(*bad(*arguments()))


def test_gradients_are_the_derivatives() -> None:
    x, table, tokens, strength = arguments(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, table, strength)]
    assert torch.autograd.gradcheck(lambda x, table, s: bigram_residual(x, table, tokens, s), leaves)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 1)])
def test_few_tokens(shape: tuple[int, int], fused: Bigram) -> None:
    _, table, _, strength = arguments()
    leaves = [each.requires_grad_() for each in (torch.zeros(*shape, 5), table, strength)]
    y = fused(leaves[0], leaves[1], torch.full(shape, 3), leaves[2])
    assert torch.equal(y.detach(), (strength * table[-1]).detach().expand(y.shape))  # first tokens, if any
    grads = torch.autograd.grad(y.sum(), leaves)
    assert torch.equal(grads[0], torch.ones_like(leaves[0]))
    assert not grads[1][:-1].any()


def test_each_call_is_counted(fused: Bigram, request: pytest.FixtureRequest) -> None:
    name = f"bigram_residual/{request.node.callspec.params['fused']}"
    before = dispatches().get(name, 0)
    fused(*arguments())
    assert dispatches()[name] == before + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    x, table, tokens, strength = arguments(dtype)
    upstream = torch.ones((), dtype=dtype).expand(x.shape)
    library.opcheck(_gradients, (upstream, table, tokens, strength))
    leaves = [tensor.requires_grad_() for tensor in (x, table, strength)]
    library.opcheck(_bigram_residual, (leaves[0], leaves[1], tokens, leaves[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_keep_torchs_contract(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops import bigram_residual as kernels

    x, table, tokens, strength = arguments(dtype)
    upstream, rows = torch.ones((), dtype=dtype).expand(x.shape), torch.zeros((2, 3), dtype=torch.int32)
    library.opcheck(kernels._gradients, (upstream, table, rows, strength))
    leaves = [tensor.requires_grad_() for tensor in (x, table, strength)]
    library.opcheck(kernels._bigram_residual, (leaves[0], leaves[1], tokens, leaves[2]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_it_compiles_whole(fused: Bigram) -> None:
    x, table, tokens, strength = arguments(torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in (x, table, strength)]

    def run(function: Bigram) -> list[Tensor]:
        y = function(leaves[0], leaves[1], tokens, leaves[2])
        return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]

    actual = run(torch.compile(fused, fullgraph=True))
    assert all(torch.equal(a, b) for a, b in zip(actual, run(fused), strict=True))
