"""The linear layer in fp8: what it keeps, refuses and promises torch. Its laws are in bench.proving."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels.counting import dispatches
from kernels.dispatch import implementation
from kernels.fp8_linear import Operand, quantise
from kernels.reference import SMALLEST_FP8_AMAX, quantise_fp8

NAMES = ("scaled-mm", "triton") if find_spec("triton") else ("scaled-mm",)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def arguments(dtype: torch.dtype = torch.float32, rows: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(rows, 32, generator=generator).to(dtype).requires_grad_()
    return x_ND, torch.randn(48, 32, generator=generator).requires_grad_()


def bits(operand: Operand) -> list[Tensor]:
    """The operand's tensors, codes as bytes: fp8 knows no equality."""
    return [each.view(torch.uint8) if each.dtype in FP8 else each for each in operand]


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("amax", [1e-30, 1e-3, 1.0, 448.0, 3e4, 1e30])
def test_the_largest_magnitude_gets_the_largest_code(dtype: torch.dtype, amax: float) -> None:
    x_MP = torch.tensor([[amax, -amax, 0.0, 0.3 * amax]])
    codes_MP, scale = quantise_fp8(x_MP, dtype)
    largest = torch.finfo(dtype).max
    if amax > SMALLEST_FP8_AMAX:
        assert codes_MP.float().tolist()[0][:3] == [largest, -largest, 0.0]
        torch.testing.assert_close(scale * largest, torch.tensor(amax))
    else:  # smaller than the smallest that is scaled up
        assert codes_MP.float().abs().max() < largest


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("rowwise", [False, True])
def test_quantising_twice_changes_no_code(dtype: torch.dtype, rowwise: bool) -> None:
    torch.manual_seed(0)
    codes_MP, scale = quantise_fp8(torch.randn(33, 65), dtype, rowwise)
    again_MP, _ = quantise_fp8(codes_MP.float() * scale, dtype, rowwise)
    assert torch.equal(codes_MP.view(torch.uint8), again_MP.view(torch.uint8))


@pytest.mark.parametrize("rowwise", [False, True])
def test_the_second_orientation_is_for_products_over_rows(rowwise: bool) -> None:
    torch.manual_seed(0)
    x_MP = torch.randn(32, 48)
    operand = quantise(x_MP, torch.float8_e4m3fn, rowwise)
    turned = quantise(x_MP.t(), torch.float8_e4m3fn, rowwise)
    assert all(map(torch.equal, bits(operand), bits(turned)[2:] + bits(turned)[:2]))
    assert operand.codes_MP.is_contiguous()
    assert operand.codes_PM.is_contiguous()


@needs_triton
@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("dtype", FP8)
def test_the_kernels_codes_are_the_references(rowwise: bool, dtype: torch.dtype) -> None:
    module = import_module("kernels.triton_ops.fp8_linear")
    torch.manual_seed(0)
    x_MP = torch.randn(70, 130)
    for view in (x_MP[:1, :1], x_MP.t().bfloat16(), x_MP[:1].expand(65, 130)):
        actual, expected = module.quantise(view, dtype, rowwise), quantise(view, dtype, rowwise)
        assert all(map(torch.equal, bits(actual), bits(expected)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rowwise", [False, True])
def test_codes_and_scales_are_all_that_is_kept(name: str, rowwise: bool) -> None:
    kept: list[Tensor] = []
    given = arguments()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        implementation("fp8_linear", name)(*given, rowwise)
    codes = [each for each in kept if each.element_size() == 1]
    assert [each.numel() for each in codes] == [each.numel() for each in given]
    assert sum(each.numel() for each in kept if each.element_size() > 1) == (64 if rowwise else 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "weight", "error", "message"),
    [
        (torch.ones(16, 16, dtype=torch.float64), torch.ones(16, 16), TypeError, "^x: dtype float64"),
        (torch.ones(16, 16), torch.ones(16, 16, dtype=torch.int8), TypeError, "^weight: dtype int8"),
        (torch.tensor(1.0), torch.ones(16, 16), ValueError, "^x: a scalar"),
        (torch.ones(16, 16), torch.ones(16, 32), ValueError, r"^weight: shape .*, expected \[any, 16\]"),
        (torch.ones(16, 16), torch.ones(16), ValueError, "^weight: shape"),
        (torch.ones(16, 16), torch.ones(16, 16, device="meta"), ValueError, "^weight: on meta"),
        (torch.ones(16, 16, device="meta"), torch.ones(16, 16), ValueError, "^x: on meta"),
        (torch.ones(3, 5, 16), torch.ones(16, 16), ValueError, "^x: 15 rows, expected a multiple of 16"),
        (torch.ones(16, 24), torch.ones(16, 24), ValueError, "^x: 24 columns, expected a multiple of 16"),
        (torch.ones(16, 16), torch.ones(8, 16), ValueError, "^weight: 8 rows, expected a multiple of 16"),
        (torch.ones(0, 16), torch.ones(16, 16), ValueError, "^x: 0 rows"),
    ],
)
def test_wrong_arguments_are_named(
    name: str, x: Tensor, weight: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        implementation("fp8_linear", name)(x, weight)


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_counted(name: str) -> None:
    before = dispatches().get(f"fp8_linear/{name}", 0)
    implementation("fp8_linear", name)(*arguments())
    assert dispatches()[f"fp8_linear/{name}"] == before + 1


@pytest.mark.parametrize("name", ["reference", *NAMES])
def test_the_sums_forward_may_be_fast_those_of_gradients_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast: list[bool] = []
    product: Callable[..., Tensor] = torch._scaled_mm

    def watched(*given: Any, use_fast_accum: bool, **options: Any) -> Tensor:
        fast.append(use_fast_accum)
        return product(*given, use_fast_accum=use_fast_accum, **options)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    implementation("fp8_linear", name)(*arguments()).sum().backward()
    assert fast == ([] if name == "reference" else [True, False, False])


@needs_triton
@pytest.mark.parametrize("rowwise", [False, True])
def test_the_ops_keep_torchs_contract(rowwise: bool) -> None:
    module = import_module("kernels.triton_ops.fp8_linear")
    x_ND, weight_OD = arguments(torch.bfloat16)
    library.opcheck(module._fp8_linear, (x_ND, weight_OD, rowwise))
    kept = module._fp8_linear(x_ND.detach(), weight_OD.detach(), rowwise)[1:]
    upstream = torch.ones((), dtype=torch.bfloat16).expand(16, 48)
    library.opcheck(module._fp8_linear_gradient, (upstream, *kept, rowwise))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_whole(name: str) -> None:
    function: Any = implementation("fp8_linear", name)
    given = arguments(torch.bfloat16)
    compiled, eager = torch.compile(function, fullgraph=True)(*given), function(*given)
    assert torch.equal(compiled, eager)
    upstream = torch.randn(eager.shape).to(eager.dtype)
    both = (torch.autograd.grad(each, given, upstream) for each in (compiled, eager))
    assert all(torch.equal(one, two) for one, two in zip(*both, strict=True))
