"""The fused mix and norm: what it refuses, keeps and repeats; its values are the properties' matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, library

pytest.importorskip("triton")

from kernels import reference
from kernels.counting import dispatches
from kernels.triton_ops.mix_rms_norm import _gradients, _mix_rms_norm, mix_rms_norm

DTYPES = (torch.float32, torch.bfloat16)


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    streams = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    return [*streams, *(torch.tensor(scale, requires_grad=True) for scale in (0.7, -0.3))]


def results(inputs: list[Tensor], function: Any = mix_rms_norm) -> list[Tensor]:
    """Outputs and gradients for fixed upstream gradients."""
    outputs = function(*inputs)
    upstreams = [each.detach().cos() for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstreams)]


@pytest.mark.parametrize(
    ("position", "wrong", "error", "named"),
    [
        (0, torch.zeros(3, 4, dtype=torch.float64), TypeError, "x_ND"),
        (0, torch.zeros(()), ValueError, "x_ND"),
        (0, torch.zeros(3, 0), ValueError, "x_ND"),
        (1, torch.zeros(3, 4, dtype=torch.bfloat16), TypeError, "other_ND"),
        (1, torch.zeros(4), ValueError, "other_ND"),
        (1, torch.zeros(3, 4, device="meta"), ValueError, "other_ND"),
        (2, torch.zeros((), dtype=torch.bfloat16), TypeError, "x_scale"),
        (2, torch.zeros(1), ValueError, "x_scale"),
        (3, torch.zeros((), device="meta"), ValueError, "other_scale"),
    ],
)
def test_a_wrong_argument_is_named(position: int, wrong: Tensor, error: type[Exception], named: str) -> None:
    inputs = problem((3, 4))
    inputs[position] = wrong
    with pytest.raises(error, match=f"^{named}: "):
        mix_rms_norm(*inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    inputs = problem((3, 5), dtype)
    library.opcheck(_mix_rms_norm, (*inputs, 1e-6))
    plain = [each.detach() for each in inputs]
    upstream = torch.randn(()).to(dtype).expand(3, 5)
    library.opcheck(_gradients, (*plain, upstream, plain[0], 1e-6))


def test_only_the_inputs_are_kept() -> None:
    kept: list[Tensor] = []
    inputs = problem((6, 8), torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        mix_rms_norm(*inputs)
    assert {each.data_ptr() for each in kept} == {each.data_ptr() for each in inputs}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    inputs = problem((80, 65), dtype)
    first = results(inputs)
    for _ in range(2):
        assert all(map(torch.equal, results(inputs), first))


def test_the_gradients_of_the_scales_are_summed_in_float32() -> None:
    """Eager sums bf16 products and rounds the sum to bf16."""
    inputs = problem((80, 65), torch.bfloat16)
    upstreams = [each.detach() for each in inputs[:2]]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    ours, expected = (
        torch.autograd.grad(function(*each), each[2:], [up.to(each[0].dtype) for up in upstreams])
        for function, each in ((mix_rms_norm, inputs), (reference.mix_rms_norm, exact))
    )
    for actual, oracle in zip(ours, expected, strict=True):
        assert actual.dtype == torch.float32
        assert abs(actual.item() / oracle.item() - 1.0) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype: torch.dtype) -> None:
    mixed, normed, *gradients = results(problem((0, 4), dtype))
    assert mixed.shape == normed.shape == (0, 4)
    assert [each.item() for each in gradients[2:]] == [0.0, 0.0]


def test_rows_further_apart_than_int32_counts(tmp_path: Path) -> None:
    """In a file that is nearly all hole: the second row begins 2^31 + 2 numbers after the first."""
    apart, width = 2**31 + 2, 4
    flat = torch.from_file(str(tmp_path / "rows"), shared=True, size=apart + width, dtype=torch.float32)
    x = flat.as_strided((2, width), (apart, 1))
    _, other, *scales = (each.detach() for each in problem((2, width)))
    x.copy_(torch.arange(8.0).view(2, width))
    actual, expected = (f(x, other, *scales) for f in (mix_rms_norm, reference.mix_rms_norm))
    torch.testing.assert_close(actual, expected)


def test_a_call_is_counted() -> None:
    before = dispatches().get("mix_rms_norm/triton", 0)
    mix_rms_norm(*problem((2, 3)))
    assert dispatches()["mix_rms_norm/triton"] == before + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_compiled_it_is_the_same() -> None:
    def doubled(*inputs: Tensor) -> list[Tensor]:
        return [2 * each for each in mix_rms_norm(*inputs)]

    inputs = problem((2, 3, 5), torch.bfloat16)
    compiled = torch.compile(doubled, fullgraph=True)
    assert all(map(torch.equal, results(inputs, compiled), results(inputs, doubled)))
