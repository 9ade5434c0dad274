"""Attention beyond its properties: refusals, torch's contracts, what the backward keeps, torch's kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch.nn.attention import varlen

from kernels import reference
from kernels import sliding_window_attention as module
from kernels.counting import dispatches
from kernels.dispatch import implementation
from kernels.sliding_window_attention import sdpa_attention, sliding_window_attention, varlen_attention

Attention = Callable[..., Tensor]
HALF = torch.bfloat16


def heads(
    tokens: int = 9, dtype: torch.dtype = torch.float32, num_heads: int = 4, head_dim: int = 8
) -> list[Tensor]:
    """q, k, v of two rows, two query heads to a key head."""
    generator = torch.Generator().manual_seed(0)
    counts = (num_heads, num_heads // 2, num_heads // 2)
    return [
        torch.randn(2, tokens, n, head_dim, generator=generator, dtype=torch.float64).to(dtype)
        for n in counts
    ]


@pytest.fixture(params=["blocked", "sdpa", "triton"])
def fused(request: pytest.FixtureRequest) -> Attention:
    if request.param == "triton":
        pytest.importorskip("triton")
    return implementation("attention", request.param)


def run(function: Attention, inputs: list[Tensor], window: int) -> list[Tensor]:
    """The output and the gradients for an upstream gradient of ones, expanded."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves, window)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


BAD: dict[str, tuple[type[Exception], str, Callable[..., tuple[Any, ...]]]] = {
    "integers": (TypeError, "q_BTHK: dtype int64", lambda q, k, v: (q.long(), k, v, 1)),
    "three dimensions": (ValueError, "q_BTHK: shape", lambda q, k, v: (q[0], k, v, 1)),
    "no tokens": (ValueError, "q_BTHK: no tokens", lambda q, k, v: (q[:, :0], k[:, :0], v[:, :0], 1)),
    "fewer keys": (ValueError, "k_BTGK: shape", lambda q, k, v: (q, k[:, 1:], v, 1)),
    "other values": (ValueError, "v_BTGK: shape", lambda q, k, v: (q, k, v[..., :4], 1)),
    "heads that do not divide": (ValueError, "k_BTGK: 2 heads", lambda q, k, v: (q[:, :, :3], k, v, 1)),
    "two dtypes": (TypeError, "v_BTGK: dtype", lambda q, k, v: (q, k, v.bfloat16(), 1)),
    "two devices": (ValueError, "k_BTGK: on meta", lambda q, k, v: (q, k.to("meta"), v, 1)),
    "a negative window": (ValueError, "window: -1", lambda q, k, v: (q, k, v, -1)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str, fused: Attention) -> None:
    error, said, arguments = BAD[case]
    with pytest.raises(error, match=said):
        fused(*arguments(*heads()))


def test_blocks_have_queries() -> None:
    with pytest.raises(ValueError, match="block: 0"):
        sliding_window_attention(*heads(), 1, block=0)


def test_sdpa_takes_no_half_of_a_dtype() -> None:
    with pytest.raises(TypeError, match="q_BTHK: dtype bfloat16, expected float64, float32"):
        sdpa_attention(*heads(dtype=HALF), 3)


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("window", [3, 8, 100])
def test_sdpa_is_the_reference_at_every_window(window: int, num_heads: int) -> None:
    """At 8 keys to the left nine tokens see all, by torch's kernel; at 3 by blocks."""
    inputs = heads(dtype=torch.float64, num_heads=num_heads)
    expected = run(reference.sliding_window_attention, inputs, window)
    for x, y in zip(run(sdpa_attention, inputs, window), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_the_kernels_name_what_they_cannot_take() -> None:
    pytest.importorskip("triton")
    triton = implementation("attention", "triton")
    with pytest.raises(TypeError, match="q_BTHK: dtype float64"):
        triton(*heads(dtype=torch.float64), 1)
    with pytest.raises(ValueError, match="q_BTHK: head dimension above 128"):
        triton(*heads(head_dim=136), 1)


@pytest.mark.parametrize("window", [0, 3, 11, 12])
def test_gradients_are_the_derivatives(window: int) -> None:
    inputs = [x[:1, :, :, :3].requires_grad_() for x in heads(12, torch.float64, 2)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: sliding_window_attention(q, k, v, window, block=5), inputs
    )


@pytest.mark.parametrize("window", [0, 4, 100])
def test_the_block_changes_nothing(window: int) -> None:
    inputs = heads(17, torch.float64)
    expected = run(reference.sliding_window_attention, inputs, window)
    for block in (1, 2, 5, 16, 17, 18):
        actual = run(partial(sliding_window_attention, block=block), inputs, window)
        for x, y in zip(actual, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("window", [3, 100])
def test_no_rows_give_no_rows(fused: Attention, window: int) -> None:
    actual = run(fused, [x[:0] for x in heads()], window)
    assert [x.shape for x in actual] == [x[:0].shape for x in (heads()[0], *heads())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time(fused: Attention, dtype: torch.dtype) -> None:
    if fused is sdpa_attention and dtype == HALF:
        pytest.skip("float32 and float64 only")
    for window in (4, 100):
        first, second = (run(fused, heads(dtype=dtype), window) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_only_inputs_output_and_a_number_a_row_live_until_the_backward(fused: Attention) -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    inputs = [x.requires_grad_() for x in heads(64)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = fused(*inputs, 64)
    rows = 4 * y.numel() // y.shape[-1]
    assert sum(kept) <= sum(x.nbytes for x in (*inputs, y)) + rows


def test_each_call_is_counted(fused: Attention, request: pytest.FixtureRequest) -> None:
    name = f"attention/{request.node.callspec.params['fused']}"
    before = dispatches().get(name, 0)
    for window in (3, 100):
        fused(*heads(), window)
    assert dispatches()[name] == before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in heads(dtype=dtype))
    library.opcheck(module._attention, (q, k, v, 3, 4))
    y = module._attention(q, k, v, 3, 4).detach()
    grad = torch.ones((), dtype=dtype).expand(y.shape)
    library.opcheck(module._gradients, (grad, y, q.detach(), k.detach(), v.detach(), 3, 4))


def test_the_kernels_keep_torchs_contract() -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops import sliding_window_attention as kernels

    q, k, v = (x.requires_grad_() for x in heads(5, num_heads=2))
    library.opcheck(kernels._attention, (q, k, v, 3))
    q, k, v = (x.detach() for x in (q, k, v))
    y, normaliser = kernels._attention(q, k, v, 3)
    grad = torch.ones(()).expand(y.shape)
    library.opcheck(kernels._gradients, (grad, q, k, v, y, normaliser, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_it_compiles_whole(fused: Attention) -> None:
    compiled = torch.compile(fused, fullgraph=True)
    window = 100 if fused is sdpa_attention else 4
    for x, y in zip(run(compiled, heads(), window), run(fused, heads(), window), strict=True):
        assert torch.equal(x, y)


# torch's kernel needs CUDA: here its interface, and what is done around it.


def test_varlen_runs_where_its_kernel_does() -> None:
    with pytest.raises(RuntimeError, match="q_BTHK: on cpu"):
        varlen_attention(*heads(dtype=HALF), 3)
    with pytest.raises(TypeError, match="q_BTHK: dtype float32, expected bfloat16, float16"):
        varlen_attention(*heads(), 3)
    with pytest.raises(ValueError, match="q_BTHK: head dimension"):
        varlen_attention(*heads(dtype=HALF, head_dim=12), 3)


@pytest.mark.parametrize("by_token", [False, True])
def test_varlen_gets_each_row_as_a_sequence(monkeypatch: pytest.MonkeyPatch, by_token: bool) -> None:
    signature = inspect.signature(varlen.varlen_attn)

    def attend(*arguments: Any, **options: Any) -> Tensor:
        given = signature.bind(*arguments, **options).arguments  # as torch's function would take them
        assert not arguments
        starts = given["cu_seq_q"].tolist()
        assert given["cu_seq_k"].tolist() == starts == [0, 9, 18]
        assert given["max_q"] == given["max_k"] == 9
        left, right = given["window_size"]
        assert right == 0
        tensors = [given[name] for name in ("query", "key", "value")]
        assert all(x.stride(-1) == 1 and x.shape == tensors[0].shape for x in tensors)
        rows = [
            reference.sliding_window_attention(*(x[None, a:b] for x in tensors), left)
            for a, b in pairwise(starts)
        ]
        return torch.cat(rows, 1)[0]

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    q, k, v = heads(dtype=HALF)
    if by_token:
        q, k, v = (x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1) for x in (q, k, v))
    expanded = [x.repeat_interleave(2, dim=2) for x in (k, v)]
    expected = reference.sliding_window_attention(q, k, v, 3)
    assert torch.equal(module._windowed(q, *expanded, 3), expected)


def test_full_attention_is_the_reference_of_a_window_past_the_row() -> None:
    q, k, v = heads(dtype=torch.float64)
    k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
    expected = reference.sliding_window_attention(q, k, v, 100)
    torch.testing.assert_close(module._full(q, k, v), expected, rtol=1e-12, atol=1e-13)


def test_row_starts_are_made_once_and_fit_for_training() -> None:
    module._cached_row_starts.cache_clear()
    with torch.inference_mode():  # an evaluation may be first to ask
        starts = module._cached_row_starts(3, 5, torch.device("cpu"))
    assert starts.tolist() == [0, 5, 10, 15]
    assert starts.dtype == torch.int32
    assert not starts.is_inference()
    assert module._cached_row_starts(3, 5, torch.device("cpu")) is starts
