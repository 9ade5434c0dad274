"""16-bit products by float32: rounded once, in every overload, eager or compiled; other dtypes untouched.

In a fresh process, since the dispatcher is told for good: one with units is treated alike there.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.host.half_products import multiply_in_float32, without_units

HALVES = (torch.bfloat16, torch.float16)
sizes = st.integers(1, 9)


def _drawn(*shape: int, dtype: torch.dtype, transposed: bool) -> Tensor:
    if transposed:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).mT
    return torch.randn(shape).to(dtype)


def _every_overload_rounds_once() -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(sizes, sizes, sizes, st.sampled_from(HALVES), st.booleans(), st.booleans())
    def check(M: int, N: int, K: int, dtype: torch.dtype, left: bool, right: bool) -> None:
        for batch, product, add in (((), torch.mm, torch.addmm), ((3,), torch.bmm, torch.baddbmm)):
            a = _drawn(*batch, M, K, dtype=dtype, transposed=left)
            b = _drawn(*batch, K, N, dtype=dtype, transposed=right)
            bias, out = torch.randn(*batch, M, N).to(dtype), torch.empty(*batch, N, M, dtype=dtype).mT
            expected = product(a.float(), b.float()).to(dtype)
            torch.testing.assert_close(product(a, b), expected, rtol=0, atol=0)
            assert product(a, b, out=out) is out
            torch.testing.assert_close(out, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
            scaled = add(bias.float(), a.float(), b.float(), beta=0.5, alpha=2.0).to(dtype)
            torch.testing.assert_close(add(bias, a, b, beta=0.5, alpha=2.0), scaled, rtol=0, atol=0)
            in_place = bias.addmm_ if add is torch.addmm else bias.baddbmm_
            assert in_place(a, b, beta=0.5, alpha=2.0) is bias
            torch.testing.assert_close(bias, scaled, rtol=0, atol=0)

    check()


def _sums_are_taken_in_float32() -> None:
    ones = torch.ones(1024, 1024, dtype=torch.bfloat16)
    assert (ones @ ones == 1024).all()


def _gradients_are_products_too() -> None:
    x = torch.randn(4, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    upstream = torch.randn(4, 5, 6).bfloat16()
    torch.nn.functional.linear(x, weight.bfloat16()).backward(upstream)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert weight.grad is not None
    expected = upstream.float().flatten(0, 1).T @ x.detach().float().flatten(0, 1)
    torch.testing.assert_close(weight.grad, expected.bfloat16().float(), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(x.grad, (upstream.float() @ weight.bfloat16().float()).bfloat16())


def _other_dtypes_keep_their_bits() -> None:
    for dtype in (torch.float32, torch.float64):
        a, b, bias = torch.randn(7, 5).to(dtype), torch.randn(5, 3).to(dtype), torch.randn(3).to(dtype)
        torch.testing.assert_close(torch.addmm(bias, a, b), bias + a @ b)
        assert torch.equal(torch.mm(a, b, out=torch.empty(7, 3, dtype=dtype)), a @ b)
    with pytest.raises(RuntimeError, match="same dtype"):
        torch.randn(2, 2).bfloat16() @ torch.randn(2, 2)


def _compiled_graphs_have_them() -> None:
    a, b = torch.randn(64, 96).bfloat16(), torch.randn(96, 32).bfloat16()
    compiled = torch.compile(lambda x, y: (x @ y).relu(), fullgraph=True)
    assert torch.equal(compiled(a, b), (a.float() @ b.float()).bfloat16().relu())


def _in_process(checks: tuple[Callable[[], None], ...]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # Inductor's own, on its first import
    multiply_in_float32(*HALVES)
    multiply_in_float32(*HALVES)  # as a second `configure` does
    torch.manual_seed(0)
    for check in checks:
        check()


EAGER = (
    _every_overload_rounds_once,
    _sums_are_taken_in_float32,
    _gradients_are_products_too,
    _other_dtypes_keep_their_bits,
)


@pytest.mark.parametrize(
    "checks",
    [
        pytest.param(EAGER, id="eager"),
        pytest.param((_compiled_graphs_have_them,), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_products_of_16_bit_numbers(checks: tuple[Callable[[], None], ...]) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(checks,))
    process.start()
    process.join()
    assert process.exitcode == 0, "its traceback is on standard error"


def test_a_processor_with_units_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: True)
    assert without_units() == ()
    assert multiply_in_float32() == ()


def test_without_onednn_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert without_units() == HALVES
