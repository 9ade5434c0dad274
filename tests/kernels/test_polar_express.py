"""What the properties of the polar step cannot say: its forms, what it refuses, symmetry, determinism."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, library

from bench.proving.bounds import largest
from kernels import reference
from kernels.dispatch import implementation
from kernels.polar_express import _factor, polar_express, shifts

TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
)
implementations = pytest.mark.parametrize("name", ["two-forms", TRITON])


def conditioned(shape: tuple[int, int], smallest: float) -> Tensor:
    """Two matrices with singular values from 1 down to `smallest`, float64."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(noise, full_matrices=False)
    return U * torch.logspace(0, torch.tensor(smallest).log10().item(), min(shape), dtype=torch.float64) @ Vh


@pytest.mark.parametrize("steps", range(6))
def test_completed_squares_are_the_polynomial(steps: int) -> None:
    scale, each = shifts(steps)
    x = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    ours, theirs = scale * x, x.clone()
    for (delta, epsilon), (a, b, c) in zip(each, reference.POLAR_EXPRESS_COEFFICIENTS, strict=False):
        ours = ((ours.square() + delta).square() + epsilon) * ours
        theirs = a * theirs + b * theirs**3 + c * theirs**5
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 5), (9, 17), (9, 19), (1, 7)])
def test_both_forms_are_one_polynomial(shape: tuple[int, int]) -> None:
    X, each = conditioned(shape, 0.05) / 2.0, shifts(5)[1]
    standard = X
    for shift in each:
        standard = _factor(standard, (shift,)) @ standard
    torch.testing.assert_close(_factor(X, each) @ X, standard, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", [(64, 256), (128, 512), (256, 64), (96, 96)])
@pytest.mark.parametrize("smallest", [0.05, 1e-3, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ill_conditioned_gradients_do_not_blow_up(
    shape: tuple[int, int], smallest: float, dtype: torch.dtype
) -> None:
    """Gradients are nearly of low rank; what rounding makes of a zero must not be amplified past 1."""
    singular = torch.linalg.svdvals(polar_express(conditioned(shape, smallest).to(dtype)).double())
    assert singular.max() <= 1.15
    assert singular[..., 0].min() >= 0.85


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 65, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_symmetric_products_are_symmetric_bit_for_bit(rows: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.polar_express import symmetric_product

    X = torch.randn(2, rows, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    for each in (X, X.mT.contiguous().mT):
        C = symmetric_product(each, 0.5)
        assert torch.equal(C, C.mT)
        expected = X.double() @ X.double().mT + 0.5 * torch.eye(rows, dtype=torch.float64)
        assert largest(C.double() - expected) <= 2 * torch.finfo(dtype).eps * largest(expected)


@implementations
def test_what_is_wrong_is_named(name: str) -> None:
    function = implementation("polar_express", name)
    with pytest.raises(TypeError, match="gradient_SMP: dtype int64"):
        function(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gradient_SMP: shape \[2, 2\]"):
        function(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="steps: 6"):
        function(torch.zeros(1, 2, 2), 6)
    with pytest.raises(ValueError, match="equilibrate: 'rows', expected none, row, column"):
        function(torch.zeros(1, 2, 2), 5, 1.01, "rows")
    for equilibrate in ("none", "row", "column"):
        assert function(torch.zeros(0, 3, 5), 5, 1.01, equilibrate).shape == (0, 3, 5)


@implementations
@pytest.mark.parametrize("shape", [(6, 15), (15, 6)])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_result_is_contiguous_and_the_same_every_time(
    name: str, shape: tuple[int, int], steps: int
) -> None:
    function, G = implementation("polar_express", name), conditioned(shape, 0.1).float()
    for equilibrate in ("none", "row", "column"):
        first = function(G.mT, steps, 1.01, equilibrate)
        assert first.is_contiguous()
        assert torch.equal(first, function(G.mT, steps, 1.01, equilibrate))


def test_the_operator_is_sound() -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.polar_express import _polar_express

    for shape, equilibrate in (((2, 3, 5), "none"), ((1, 5, 3), "row"), ((1, 5, 3), "column")):
        library.opcheck(_polar_express, (torch.randn(shape), 2, 1.01, equilibrate))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("equilibrate", ["none", "row", "column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_with_its_first_pass_compiled(
    dtype: torch.dtype, equilibrate: str, steps: int
) -> None:
    """On matrices that do not lie row by row too."""
    torch.compiler.reset()  # one function is compiled a limited number of times
    for G in (conditioned((96, 192), 0.1).to(dtype), conditioned((192, 96), 0.1).to(dtype).mT):
        eager, ours = (
            polar_express(G, steps, 1.01, equilibrate, compiled=compiled) for compiled in (False, True)
        )
        assert eager.dtype == ours.dtype
        # A last bit of the norm may round otherwise, which the iteration amplifies.
        torch.testing.assert_close(ours, eager, rtol=0.0, atol=0.2 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check`:FutureWarning")  # its lowering of a diagonal
@implementations
def test_it_compiles_whole(name: str) -> None:
    function, G = implementation("polar_express", name), conditioned((6, 15), 0.1).float()
    compiled = torch.compile(lambda x: 2 * function(x, 2), fullgraph=True)
    torch.testing.assert_close(compiled(G), 2 * function(G, 2))
