"""What the properties of AdamW cannot say: what it refuses, soundness as an operator, determinism."""

from __future__ import annotations

import importlib.util
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, library

from kernels.dispatch import implementation

TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
)
implementations = pytest.mark.parametrize("name", ["fused", TRITON])
NUMBERS: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def state(*dtypes: torch.dtype) -> list[list[Tensor]]:
    """Parameters and gradients of these types, and moments."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (64, 32), (7,)][: len(dtypes)]
    made = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(4)]
    for tensors in made[:2]:
        tensors[:] = [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    made[3] = [tensor.square() for tensor in made[3]]
    return made


@implementations
def test_what_is_wrong_is_named(name: str) -> None:
    function = implementation("adamw", name)
    p, g, m, v = state(torch.float32, torch.float32)
    with pytest.raises(ValueError, match="step: 0, the first is 1"):
        function(p, g, m, v, 0, **NUMBERS)
    with pytest.raises(ValueError, match="grads: 1 tensors for 2 parameters"):
        function(p, g[:1], m, v, 1, **NUMBERS)
    with pytest.raises(ValueError, match=r"exp_avg_sqs\[1\]: shape \[3, 4\], expected \[64, 32\]"):
        function(p, g, m, [v[0], v[0]], 1, **NUMBERS)
    with pytest.raises(TypeError, match=r"exp_avgs\[0\]: dtype float16"):
        function(p, g, [x.half() for x in m], v, 1, **NUMBERS)
    with pytest.raises(TypeError, match=r"params\[0\]: dtype float32, expected bfloat16"):
        function(p, g, *([x.bfloat16() for x in moments] for moments in (m, v)), 1, **NUMBERS)
    with pytest.raises(TypeError, match=r"grads\[1\]: dtype float16"):
        function(p, [g[0], g[1].half()], m, v, 1, **NUMBERS)
    with pytest.raises(TypeError, match=r"exp_avgs\[1\]: dtype float64, expected float32"):
        function(p, g, [m[0], m[1].double()], v, 1, **NUMBERS)


@implementations
def test_types_of_one_call_may_differ(name: str) -> None:
    """bf16 parameters beside float32 ones, and a float32 gradient of a bf16 parameter."""
    mixed = state(torch.bfloat16, torch.float32, torch.bfloat16)
    mixed[1][2] = mixed[1][2].float()
    outcomes = []
    for each in (name, "reference"):
        copies = [[tensor.clone() for tensor in tensors] for tensors in mixed]
        implementation("adamw", each)(*copies, 3, **NUMBERS)
        outcomes.append(copies)
    for ours, theirs in zip(*(chain(*each) for each in outcomes), strict=True):
        torch.testing.assert_close(ours, theirs)


@implementations
def test_a_step_has_the_same_bits_every_time(name: str) -> None:
    outcomes = []
    for _ in range(2):
        tensors = state(torch.float32, torch.bfloat16, torch.float32)
        implementation("adamw", name)(*tensors, 3, **NUMBERS)
        outcomes.append([*chain(*tensors)])
    assert all(map(torch.equal, *outcomes))


def test_the_table_finds_every_block_and_sees_alignment() -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.adamw import _table

    rows = [tuple(torch.zeros(size) for _ in range(4)) for size in (64, 3 * 64, 16)]
    table, programs, aligned = _table(rows, 64)
    assert table[:, 4].tolist() == [64, 192, 16]
    assert table[:, 5].tolist() == [0, 1, 4]
    assert programs == 5
    assert aligned == all(x.data_ptr() % 16 == 0 for row in rows for x in row)
    assert not _table([tuple(torch.zeros(65)[1:] for _ in range(4))], 64)[2]
    assert not _table([tuple(torch.zeros(63) for _ in range(4))], 64)[2]


def test_the_operator_is_sound() -> None:
    pytest.importorskip("triton")
    from kernels.triton_ops.adamw import _adamw_

    tensors = state(torch.float32, torch.bfloat16)
    library.opcheck(_adamw_, (*tensors, 3, 0.1, 0.8, 0.95, 1e-8, 0.1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_it_compiles_whole() -> None:
    """Triton's only: torch's fused step cannot be traced (2.13), and no optimizer here is."""
    pytest.importorskip("triton")
    function = implementation("adamw", "triton")

    def step(p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
        function(p, g, m, v, 3, **NUMBERS)

    outcomes = []
    for each in (step, torch.compile(step, fullgraph=True)):
        tensors = state(torch.float32, torch.float32)
        each(*tensors)
        outcomes.append([*chain(*tensors)])
    for eager, compiled in zip(*outcomes, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("name", ["reference", "fused"])
@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_a_step_may_be_counted_on_the_device(name: str, betas: tuple[float, float], step: int) -> None:
    function = implementation("adamw", name)
    generator = torch.Generator().manual_seed(step)
    numbered = [[torch.rand(5, 3, generator=generator) + 0.1] for _ in range(4)]
    counted = [[tensor.clone() for tensor in tensors] for tensors in numbered]
    options = {"lr": 0.02, "betas": betas, "eps": 1e-10, "weight_decay": 0.1}
    function(*numbered, step, **options)
    function(*counted, torch.tensor(step), **options)
    for (one,), (other,) in zip(numbered, counted, strict=True):
        torch.testing.assert_close(other, one, rtol=0.0 if name == "fused" else 1e-6, atol=0.0)


def test_a_step_count_on_the_device_is_one_number() -> None:
    tensors = [[torch.ones(2)] for _ in range(4)]
    with pytest.raises(ValueError, match="step"):
        implementation("adamw", "fused")(*tensors, torch.ones(2), **NUMBERS)
