"""The fused rotation and norm: what it refuses, keeps and repeats; its values are the properties' matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, library

pytest.importorskip("triton")

from kernels import reference
from kernels.counting import dispatches
from kernels.triton_ops.rotary_qk_norm import _gradients, _rotary_qk_norm, rotary_qk_norm

DTYPES = (torch.float32, torch.bfloat16)
SCALE = 1.2


def problem(dtype: torch.dtype = torch.float32, head_dim: int = 8) -> list[Tensor]:
    """q [2, 5, 3, K], k [2, 5, 1, K] and tables."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 5, heads, head_dim, generator=generator).to(dtype) for heads in (3, 1))
    angles = torch.randn(1, 5, 1, head_dim // 2, generator=generator)
    return [q.requires_grad_(), k.requires_grad_(), angles.cos().to(dtype), angles.sin().to(dtype)]


def results(inputs: list[Tensor], function: Any = rotary_qk_norm, scale: float = SCALE) -> list[Tensor]:
    """Outputs and gradients for fixed upstream gradients."""
    outputs = function(*inputs, scale)
    upstreams = [each.detach().cos() for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs[:2], upstreams)]


@pytest.mark.parametrize(
    ("position", "wrong", "error", "named"),
    [
        (0, torch.zeros(2, 5, 3, 8, dtype=torch.float64), TypeError, "q_BTHK"),
        (0, torch.zeros(2, 5, 24), ValueError, "q_BTHK"),
        (0, torch.zeros(2, 5, 3, 7), ValueError, "q_BTHK"),
        (0, torch.zeros(2, 5, 3, 258), ValueError, "q_BTHK"),
        (1, torch.zeros(2, 5, 1, 8, dtype=torch.bfloat16), TypeError, "k_BTGK"),
        (1, torch.zeros(2, 4, 1, 8), ValueError, "k_BTGK"),
        (1, torch.zeros(2, 5, 1, 8, device="meta"), ValueError, "k_BTGK"),
        (2, torch.zeros(1, 6, 1, 4), ValueError, "cos"),
        (2, torch.zeros(1, 5, 1, 8), ValueError, "cos"),
        (3, torch.zeros(1, 5, 1, 4, dtype=torch.bfloat16), TypeError, "sin"),
    ],
)
def test_a_wrong_argument_is_named(position: int, wrong: Tensor, error: type[Exception], named: str) -> None:
    inputs = problem()
    inputs[position] = wrong
    with pytest.raises(error, match=f"^{named}: "):
        rotary_qk_norm(*inputs, SCALE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    q, k, cos, sin = problem(dtype)
    library.opcheck(_rotary_qk_norm, (q, k, cos, sin, SCALE, 1e-6))
    kept = [each.detach() for each in _rotary_qk_norm(q, k, cos, sin, SCALE, 1e-6)]
    upstreams = [torch.randn(()).to(dtype).expand(each.shape) for each in (q, k)]
    library.opcheck(_gradients, (*upstreams, *kept, cos, sin, SCALE))


def test_the_outputs_are_kept_and_not_the_inputs() -> None:
    kept: list[Tensor] = []
    inputs = problem(torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        q, k = rotary_qk_norm(*inputs, SCALE)
    places = {each.data_ptr() for each in (q, k, *inputs[2:])}
    others = [each for each in kept if each.data_ptr() not in places]
    assert places <= {each.data_ptr() for each in kept}
    assert [(each.dtype, each.shape) for each in others] == [
        (torch.float32, q.shape[:3]),
        (torch.float32, k.shape[:3]),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    inputs = problem(dtype, 24)
    first = results(inputs)
    for _ in range(2):
        assert all(map(torch.equal, results(inputs), first))


@pytest.mark.parametrize("heads", [(1, 0), (0, 1)])
def test_no_rows_and_no_heads(heads: tuple[int, int]) -> None:
    q, k, cos, sin = problem()
    empty = results([q[:0], k[:0], cos, sin])
    assert [each.shape[0] for each in empty] == [0, 0, 0, 0]
    few = [q[:, :, : heads[0]], k[:, :, : heads[1]], cos, sin]
    for actual, expected in zip(results(few), results(few, reference.rotary_qk_norm), strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_factor_of_zero() -> None:
    assert not any(each.any() for each in results(problem(), scale=0.0))


def test_rows_further_apart_than_int32_counts(tmp_path: Path) -> None:
    """In a file that is nearly all hole: the second position begins 2^31 + 2 numbers after the first."""
    apart, K = 2**31 + 2, 4
    flat = torch.from_file(str(tmp_path / "rows"), shared=True, size=apart + K, dtype=torch.float32)
    q = flat.as_strided((1, 2, 1, K), (2 * apart, apart, K, 1))
    q.copy_(torch.arange(8.0).view(1, 2, 1, K))
    cos, sin = torch.randn(2, 1, 2, 1, K // 2)
    actual, expected = (f(q, q, cos, sin, SCALE) for f in (rotary_qk_norm, reference.rotary_qk_norm))
    torch.testing.assert_close(actual, expected)


def test_a_call_is_counted() -> None:
    before = dispatches().get("rotary_qk_norm/triton", 0)
    rotary_qk_norm(*problem(), SCALE)
    assert dispatches()["rotary_qk_norm/triton"] == before + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_compiled_it_is_the_same() -> None:
    def doubled(*inputs: Any) -> list[Tensor]:
        return [2 * each for each in rotary_qk_norm(*inputs)]

    inputs = problem(torch.bfloat16)
    compiled = torch.compile(doubled, fullgraph=True)
    assert all(map(torch.equal, results(inputs, compiled), results(inputs, doubled)))
