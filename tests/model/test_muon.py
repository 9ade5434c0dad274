"""The Muon step against a plain statement in float64, and the invariants of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import largest
from kernels.choices import choose
from kernels.dispatch import bind
from kernels.reference import POLAR_EXPRESS_COEFFICIENTS
from model.optimizers.muon import muon_step_, shape_lr_scale

SHAPES = [(4, 4), (3, 12), (12, 3), (5, 7), (1, 6), (6, 1)]
CONSTANTS: dict[str, Any] = {
    "lr": 0.03,
    "momentum": 0.9,
    "beta2": 0.8,
    "weight_decay": 0.4,
    "polar_steps": 5,
    "polar_norm_scale": 1.01,
    "polar_dtype": torch.float64,
    "equilibrate": "none",
    "renormalise": False,
}
KERNELS = bind(choose("cpu"), compiled=False)
OF_THE_GROUP = ("beta2", "polar_steps", "polar_norm_scale", "equilibrate", "renormalise")


def step_(W: Tensor, G: Tensor, state: dict[str, Tensor], **constants: Any) -> None:
    """The step, its constants by name."""
    group = {name: constants.pop(name) for name in OF_THE_GROUP}
    muon_step_(W, G, state, KERNELS, constants=group, **constants)


def plain_step(W: Tensor, G: Tensor, memory: dict[str, Tensor], constants: dict[str, Any]) -> Tensor:
    """One matrix, in the papers' order: momentum, orthogonalise, even out neurons, decay, move."""
    mu, lr = constants["momentum"], constants["lr"]
    memory["M"] = mu * memory.get("M", torch.zeros_like(G)) + (1 - mu) * G
    N = (1 - mu) * G + mu * memory["M"]
    if constants["equilibrate"] != "none":
        dim = 1 if constants["equilibrate"] == "row" else 0
        N = N / torch.linalg.norm(N, dim=dim, keepdim=True) * torch.linalg.norm(N) / N.shape[1 - dim] ** 0.5
    U, s, Vh = torch.linalg.svd(N, full_matrices=False)
    s = s / (constants["polar_norm_scale"] * s.square().sum().sqrt() + 1e-6)
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[: constants["polar_steps"]]:
        s = a * s + b * s**3 + c * s**5
    O = U * s @ Vh  # noqa: E741
    if constants["renormalise"]:
        O = O / torch.linalg.norm(O) * min(O.shape) ** 0.5  # noqa: E741
    if constants["beta2"]:
        tall = W.shape[0] >= W.shape[1]
        neurons = list(O.unbind(0 if tall else 1))  # outputs of a tall or square matrix, inputs of a wide one
        V = memory.get("V", torch.zeros(len(neurons), dtype=O.dtype))
        memory["V"] = V = torch.stack(
            [
                constants["beta2"] * v + (1 - constants["beta2"]) * (n @ n) / len(n)
                for v, n in zip(V, neurons, strict=True)
            ]
        )
        scaled = torch.stack([n / v.sqrt() for n, v in zip(neurons, V, strict=True)], dim=0 if tall else 1)
        O = scaled * torch.linalg.norm(O) / torch.linalg.norm(scaled)  # noqa: E741
    decayed = W - lr * constants["weight_decay"] * W * (torch.sign(O) * torch.sign(W) >= 0)
    return decayed - lr * O


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    momentum=st.sampled_from([0.0, 0.85, 0.97]),
    beta2=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.4]),
    polar_steps=st.integers(1, 5),
    equilibrate=st.sampled_from(["none", "row", "column"]),
    renormalise=st.booleans(),
)
def test_three_steps_are_those_of_the_plain_statement(
    seed: int, shape: tuple[int, int], **drawn: Any
) -> None:
    constants = {**CONSTANTS, **drawn}
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    plain, memories, state = list(W.clone()), [{}, {}], {}  # type: ignore[var-annotated]
    for step in range(3):
        G = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        now = {**constants, "lr": 0.03 / (1 + step)}
        plain = [plain_step(w, g, memory, now) for w, g, memory in zip(plain, G, memories, strict=True)]
        step_(W, G.clone(), state, **now)
    torch.testing.assert_close(W, torch.stack(plain), rtol=1e-7, atol=1e-8)
    assert ("second_moment" in state) == bool(constants["beta2"])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stack_is_its_matrices_one_by_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    W, state, alone = torch.randn(3, *shape), {}, [{}, {}, {}]  # type: ignore[var-annotated]
    single = [w[None].clone() for w in W]
    constants = {**CONSTANTS, "polar_dtype": torch.float32}
    for _ in range(3):
        G = torch.randn(3, *shape)
        for w, g, memory in zip(single, G, alone, strict=True):
            step_(w, g[None].clone(), memory, **constants)
        step_(W, G.clone(), state, **constants)
    torch.testing.assert_close(W, torch.cat(single), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_decay_the_update_does_not_see_the_parameters(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    G, near, far = torch.randn(2, *shape), torch.zeros(2, *shape), 8.0 * torch.randn(2, *shape)
    constants = {**CONSTANTS, "weight_decay": 0.0, "polar_dtype": torch.bfloat16}
    start = far.clone()
    for W in (near, far):
        step_(W, G.clone(), {}, **constants)
    torch.testing.assert_close(far - start, near, rtol=0.0, atol=1e-5)
    assert largest(near) > 0


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_size_of_the_gradient_does_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    G, one, other = torch.randn(1, 6, 9, dtype=torch.float64), torch.ones(1, 6, 9, dtype=torch.float64), None
    other = one.clone()
    step_(one, G.clone(), {}, **CONSTANTS)
    step_(other, scale * G, {}, **CONSTANTS)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_tall_matrices_learn_faster() -> None:
    assert shape_lr_scale(4 * 96, 96) == 2.0
    assert shape_lr_scale(96, 4 * 96) == 1.0
    assert shape_lr_scale(96, 96) == 1.0
