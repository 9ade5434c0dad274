"""The MLP with relu squared: what it keeps, refuses and promises torch. Its laws are in bench.proving."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels import reference
from kernels.counting import dispatches
from kernels.dispatch import implementation
from kernels.relu_squared_mlp import relu_squared_mlp

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
NAMES = ("keep-output", "triton") if find_spec("triton") else ("keep-output",)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def arguments(dtype: torch.dtype, rows: int = 6, width: int = 4, inner: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (inner, width), (width, inner))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def kept(function: Function, given: list[Tensor]) -> set[int]:
    """The storages that a call keeps for its backward pass, beside those of its arguments."""
    storages: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*given)
    return storages - {each.untyped_storage().data_ptr() for each in given}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_squares_alone_are_kept(name: str, dtype: torch.dtype) -> None:
    function = implementation("relu_squared_mlp", name)
    assert len(kept(function, arguments(dtype))) == 1
    assert len(kept(reference.relu_squared_mlp, arguments(dtype))) > 1


def test_the_gradients_are_the_derivatives() -> None:
    assert torch.autograd.gradcheck(relu_squared_mlp, arguments(torch.float64))


def test_float16_keeps_what_its_squares_lose() -> None:
    x_ND, up_FD, down_DF = (each.detach() for each in arguments(torch.float16))
    x_ND = (x_ND * 1e-5).requires_grad_()  # squares of 1e-10 underflow
    grad_x_ND = torch.autograd.grad(relu_squared_mlp(x_ND, up_FD, down_DF).sum() * 1e4, x_ND)[0]
    exact = x_ND.detach().double().requires_grad_()
    y_ND = reference.relu_squared_mlp(exact, up_FD.double(), down_DF.double())
    expected = torch.autograd.grad(y_ND.sum() * 1e4, exact)[0]
    assert expected.any()
    torch.testing.assert_close(
        grad_x_ND.double(), expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("position", "wrong", "error", "message"),
    [
        (0, torch.ones(6, 4, dtype=torch.int64), TypeError, "^x: dtype int64"),
        (0, torch.tensor(1.0), ValueError, "^x: "),
        (1, torch.ones(5, 3), ValueError, r"^up: shape \[5, 3\], expected \[any, 4\]"),
        (1, torch.ones(5, 4, device="meta"), ValueError, "^up: on meta"),
        (1, torch.ones(5, 4, dtype=torch.int32), TypeError, "^up: dtype int32"),
        (2, torch.ones(4, 6), ValueError, r"^down: shape \[4, 6\], expected \[4, 5\]"),
        (2, torch.ones(4, 5, device="meta"), ValueError, "^down: on meta"),
    ],
)
def test_wrong_arguments_are_named(
    name: str, position: int, wrong: Tensor, error: type[Exception], message: str
) -> None:
    given = arguments(torch.float32)
    given[position] = wrong
    with pytest.raises(error, match=message):
        implementation("relu_squared_mlp", name)(*given)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_kernel_refuses_what_it_cannot_represent(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"^x: dtype float\d+, expected bfloat16, float32"):
        implementation("relu_squared_mlp", "triton")(*arguments(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_are_a_batch_too(name: str) -> None:
    given = arguments(torch.float32, rows=0)
    y_ND = implementation("relu_squared_mlp", name)(*given)
    assert y_ND.shape == (0, 4)
    assert not any(grad.any() for grad in torch.autograd.grad(y_ND.sum(), given))


@pytest.mark.parametrize("name", NAMES)
def test_every_call_is_counted(name: str) -> None:
    before = dispatches().get(f"relu_squared_mlp/{name}", 0)
    implementation("relu_squared_mlp", name)(*arguments(torch.float32))
    assert dispatches()[f"relu_squared_mlp/{name}"] == before + 1


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_keep_torchs_contract(dtype: torch.dtype) -> None:
    module = import_module("kernels.triton_ops.relu_squared_mlp")
    x_ND, up_FD, down_DF = arguments(dtype)
    masters = [each.detach().float().requires_grad_() for each in (up_FD, down_DF)]
    library.opcheck(module._mlp, (x_ND, *masters))
    post_NF = torch.rand(6, 5).to(dtype)
    upstream = torch.ones((), dtype=dtype).expand(6, 4)
    given = (upstream, x_ND.detach(), post_NF, *(each.detach() for each in masters))
    library.opcheck(module._mlp_gradient, given)


@needs_triton
def test_the_blocks_sizes_change_roundings_only() -> None:
    module = import_module("kernels.triton_ops.relu_squared_mlp")
    config = module._CONFIGS[0][4]
    torch.manual_seed(0)
    x_NK, weight_KF, post_NF = torch.randn(70, 40), torch.randn(40, 90), torch.rand(70, 90)
    for post in (None, post_NF):
        results = [
            module._product(
                x_NK, weight_KF, post, config._replace(blocks=dict(zip(config.blocks, sizes, strict=True)))
            )
            for sizes in ((16, 32, 16, 8), (32, 64, 64, 2), (128, 128, 16, 1))
        ]
        product = x_NK.double() @ weight_KF.double()
        exact = product.relu().square() if post is None else 2.0 * product * post_NF.double().sqrt()
        for result in results:
            torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_whole(name: str) -> None:
    function: Any = implementation("relu_squared_mlp", name)
    given = arguments(torch.bfloat16, rows=16, width=16, inner=32)
    compiled = torch.compile(function, fullgraph=True)(*given)
    eager = function(*given)
    torch.testing.assert_close(compiled, eager, rtol=2e-2, atol=2e-2 * eager.abs().max().item())
    upstream = torch.randn(eager.shape).to(eager.dtype)
    both = (torch.autograd.grad(each, given, upstream) for each in (compiled, eager))
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-2, atol=2e-2 * two.abs().max().item())
