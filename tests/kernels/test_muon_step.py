"""What the properties of the Muon step cannot say: what it refuses, soundness as operators, determinism."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels.dispatch import implementation
from kernels.muon_step import CHUNK_ELEMENTS

TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
)
implementations = pytest.mark.parametrize("name", ["in-place", TRITON])
BF16 = torch.bfloat16
NUMBERS: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "beta2": 0.9}


def stacks(*shape: int, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@implementations
def test_a_wrong_direction_is_named(name: str) -> None:
    function = implementation("muon_direction", name)
    good, _ = stacks(2, 3, 4)
    with pytest.raises(TypeError, match="grads_SMP: dtype int64"):
        function(good.long(), good, 0.9)
    with pytest.raises(ValueError, match="grads_SMP: shape"):
        function(good[0], good[0], 0.9)
    with pytest.raises(TypeError, match="momentum_SMP: dtype bfloat16"):
        function(good, good.bfloat16(), 0.9)
    with pytest.raises(ValueError, match="momentum_SMP: shape"):
        function(good, good[:1], 0.9)


@implementations
def test_a_wrong_update_is_named(name: str) -> None:
    function = implementation("muon_update", name)
    params, update = stacks(2, 3, 4)
    second = torch.ones(2, 1, 4)
    with pytest.raises(TypeError, match="params_SMP: dtype bfloat16"):
        function(params.bfloat16(), update, None, **NUMBERS)
    with pytest.raises(ValueError, match="params_SMP: shape"):
        function(params[0], update[0], None, **NUMBERS)
    with pytest.raises(TypeError, match="update_SMP: dtype int64"):
        function(params, update.long(), None, **NUMBERS)
    with pytest.raises(ValueError, match="update_SMP: shape"):
        function(params, update[:, :2], None, **NUMBERS)
    with pytest.raises(TypeError, match="second_moment: dtype bfloat16"):
        function(params, update, second.bfloat16(), **NUMBERS)
    with pytest.raises(ValueError, match=r"second_moment: shape \[2, 3, 1\], expected \[2, 1, 4\]"):
        function(params, update, torch.ones(2, 3, 1), **NUMBERS)


@implementations
def test_an_empty_stack_is_nothing_to_do(name: str) -> None:
    empty = torch.zeros(0, 3, 4)
    assert implementation("muon_direction", name)(empty, empty.clone(), 0.9).shape == (0, 3, 4)
    implementation("muon_update", name)(
        empty, empty.clone(), torch.zeros(0, 1, 4), renormalise=True, **NUMBERS
    )


@implementations
@pytest.mark.parametrize("shape", [(2, 33, 9), (2, 9, 33)])
def test_a_step_has_the_same_bits_every_time(name: str, shape: tuple[int, int, int]) -> None:
    direction, update = (implementation(op, name) for op in ("muon_direction", "muon_update"))
    outcomes = []
    for _ in range(2):
        grads, params = stacks(*shape)
        second = torch.ones(2, 33, 1) if shape[1] > shape[2] else torch.ones(2, 1, 33)
        made = direction(grads, grads.clone(), 0.9)
        update(params, made, second, renormalise=True, **NUMBERS)
        outcomes.append((made, params, second))
    assert all(map(torch.equal, *outcomes))


def test_chunks_of_matrices_are_one_step() -> None:
    """A stack that is cut into several chunks, the last one short."""
    side = int((CHUNK_ELEMENTS / 2) ** 0.5)
    params, update = stacks(5, side, side)
    second, theirs = torch.zeros(5, side, 1), [params.clone(), torch.zeros(5, side, 1)]
    implementation("muon_update", "in-place")(params, update, second, **NUMBERS)
    implementation("muon_update", "reference")(theirs[0], update, theirs[1], **NUMBERS)
    torch.testing.assert_close(params, theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second, theirs[1])


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the order of torch's sums was read on x86 alone"
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("normuon", [False, True])
@pytest.mark.parametrize("shape", [(4, 96, 96), (9, 96, 40), (5, 70, 96), (13, 70, 37), (13, 37, 70)])
def test_compiled_or_not_the_bits_are_equal(
    shape: tuple[int, int, int], normuon: bool, renormalise: bool
) -> None:
    """A run that was recorded before the passes were compiled still replays."""
    torch.compiler.reset()  # one function is compiled a limited number of times
    function, outcomes = implementation("muon_update", "in-place"), []
    for compiled in (False, True):
        params, update = stacks(*shape)
        params[:, 0], update[:, :, 0] = 0.0, 0.0
        averaged = (shape[0], shape[1], 1) if shape[1] >= shape[2] else (shape[0], 1, shape[2])
        second = torch.full(averaged, 0.5) if normuon else None
        for lr, decay in ((0.1, 0.3), (0.07, 0.0)):
            options: dict[str, Any] = {"lr": lr, "weight_decay": decay, "beta2": 0.9}
            function(params, update.bfloat16(), second, renormalise=renormalise, compiled=compiled, **options)
        outcomes.append([params] if second is None else [params, second])
    assert all(map(torch.equal, *outcomes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.parametrize("momentum", [0.95, 0.5, 0.3])
@pytest.mark.parametrize("shape", [(4, 96, 96), (2, 70, 370), (1, 37, 1000)])
def test_a_compiled_direction_is_the_eager_one(shape: tuple[int, int, int], momentum: float) -> None:
    """To the bit where rows are whole vectors."""
    torch.compiler.reset()  # one function is compiled a limited number of times
    function, outcomes = implementation("muon_direction", "in-place"), []
    for compiled in (False, True):
        grads, memory = stacks(*shape)
        made = [function(grads, memory, momentum, dtype, compiled=compiled) for dtype in (None, BF16)]
        outcomes.append([*made, memory])
    for eager, ours in zip(*outcomes, strict=True):
        assert eager.dtype == ours.dtype
        if shape[1] % 32 == 0:
            assert torch.equal(eager, ours)
        torch.testing.assert_close(eager, ours)


def test_the_operators_are_sound() -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.muon_step import _muon_direction_, _muon_update_

    params, update = stacks(2, 3, 4)
    library.opcheck(_muon_direction_, (update, params.clone(), 0.9, BF16))
    for second in (None, torch.ones(2, 1, 4)):
        library.opcheck(_muon_update_, (params.clone(), update, second, 0.1, 0.3, 0.9, True))


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the order of torch's sums was read on x86 alone"
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@implementations
def test_it_compiles_whole(name: str) -> None:
    direction, update = (implementation(op, name) for op in ("muon_direction", "muon_update"))

    def step(params: Tensor, grads: Tensor, momentum: Tensor, second: Tensor) -> None:
        update(params, direction(grads, momentum, 0.9), second, renormalise=True, **NUMBERS)

    outcomes = []
    for function in (step, torch.compile(step, fullgraph=True)):
        state = [*stacks(2, 5, 9, count=3), torch.ones(2, 1, 9)]
        function(*state)
        outcomes.append(state)
    for eager, compiled in zip(*outcomes, strict=True):
        torch.testing.assert_close(compiled, eager)
