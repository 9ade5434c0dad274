"""The AdamW step against torch.optim.AdamW and against what its averages must converge to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import largest
from kernels.choices import choose
from kernels.dispatch import Kernels, bind
from model.optimizers.adamw import adamw_step_

CONSTANTS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
KERNELS = bind(choose("cpu"), compiled=False)


def group(**changes: Any) -> dict[str, Any]:
    """An AdamW group before its first step."""
    constants = CONSTANTS | changes
    return {
        "betas": constants["betas"],
        "eps": constants["eps"],
        "base_weight_decay": constants["weight_decay"],
        "step": 0,
    }


@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 8),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_it_is_torchs_adamw(seed: int, steps: int, dtype: torch.dtype, weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (5,), (1,))]
    theirs = [torch.nn.Parameter(param.clone()) for param in ours]
    constants = {**CONSTANTS, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW(theirs, **constants, foreach=False, fused=False)
    states: list[dict[str, Tensor]] = [{}, {}, {}]
    constants_of_group = group(weight_decay=weight_decay)
    for _ in range(steps):
        grads = [torch.randn(param.shape, generator=generator, dtype=dtype) for param in ours]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        adamw_step_(ours, grads, states, KERNELS, constants_of_group, lr=0.02)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b.detach(), rtol=20 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps
        )
    assert constants_of_group["step"] == steps


@pytest.mark.parametrize("beta2", [0.95, 0.995])
def test_averages_of_a_constant_gradient_reach_it(beta2: float) -> None:
    """In float32; bf16 moments do not."""
    param, state = torch.zeros(3), {}  # type: tuple[Tensor, dict[str, Tensor]]
    gradient, constants = torch.tensor([1.0, -0.5, 3.0]), group(betas=(0.8, beta2), weight_decay=0.0)
    for _ in range(4000):
        before = param.clone()
        adamw_step_([param], [gradient.clone()], [state], KERNELS, constants, lr=0.01)
    torch.testing.assert_close(state["exp_avg"], gradient)
    torch.testing.assert_close(state["exp_avg_sq"], gradient.square(), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(param - before, -0.01 * gradient.sign(), rtol=1e-3, atol=0.0)


def test_without_gradients_only_the_decay_moves_a_parameter() -> None:
    param, start, state = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), {}  # type: ignore[var-annotated]
    constants = group()
    for _ in range(7):
        adamw_step_([param], [torch.zeros(4, dtype=torch.float64)], [state], KERNELS, constants, lr=0.02)
    torch.testing.assert_close(param, start * (1 - 0.02 * 0.1) ** 7)


def test_it_is_odd() -> None:
    torch.manual_seed(0)
    param = torch.randn(5)
    mirrored, states, groups = -param, [{}, {}], [group(), group()]  # type: ignore[var-annotated]
    for _ in range(3):
        grad = torch.randn(5)
        adamw_step_([param], [grad.clone()], states[:1], KERNELS, groups[0], lr=0.02)
        adamw_step_([mirrored], [-grad], states[1:], KERNELS, groups[1], lr=0.02)
    assert torch.equal(param, -mirrored)
    assert largest(param) > 0


# No small fractions: 0.8 m + 0.2 g of bf16 numbers is often halfway between two, where the last bit decides.
CROOKED = (0.7853, 0.9473)


def nanochats_step(p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float) -> None:
    """adamw_step_fused of karpathy/nanochat at 92d63d4, which casts to float32 and back."""
    lr_t, beta1_t, beta2_t = (torch.tensor(x) for x in (lr, *CROOKED))
    eps_t, wd_t, step_t = (
        torch.tensor(x) for x in (CONSTANTS["eps"], CONSTANTS["weight_decay"], float(step))
    )
    p32, exp_avg32, exp_avg_sq32, grad32 = p.float(), m.float(), v.float(), grad.float()
    p32.mul_(1 - lr_t * wd_t)
    exp_avg32.lerp_(grad32, 1 - beta1_t)
    exp_avg_sq32.lerp_(grad32.square(), 1 - beta2_t)
    denom = (exp_avg_sq32 / (1 - beta2_t**step_t)).sqrt() + eps_t
    p32.add_(exp_avg32 / denom, alpha=-float(lr_t / (1 - beta1_t**step_t)))
    for tensor, exact in ((p, p32), (m, exp_avg32), (v, exp_avg_sq32)):
        tensor.copy_(exact)


@given(seed=st.integers(0, 10**6), kernels=st.sampled_from([KERNELS, bind((), compiled=False)]))
def test_of_bf16_parameters_it_is_nanochats(seed: int, kernels: Kernels) -> None:
    """Step by step from the same state; a number between two of bf16 may go to either."""
    generator = torch.Generator().manual_seed(seed)
    ours = torch.randn(40, 7, generator=generator).bfloat16()
    constants, state = group(betas=CROOKED), {}  # type: dict[str, Any], dict[str, Tensor]
    theirs = [torch.zeros_like(ours), torch.zeros_like(ours)]
    for step in range(1, 9):
        param, grad = ours.clone(), (torch.randn(40, 7, generator=generator) / 100).bfloat16()
        adamw_step_([ours], [grad], [state], kernels, constants, lr=0.02)
        nanochats_step(param, grad, *theirs, step, 0.02)
        for mine, other in zip((ours, *state.values()), (param, *theirs), strict=True):
            assert mine.dtype == torch.bfloat16
            assert (mine != other).sum() <= 2
            torch.testing.assert_close(mine, other, rtol=2**-7, atol=1e-8)
            other.copy_(mine)


def test_a_bf16_average_of_squares_stalls_as_nanochats() -> None:
    """Of 1 with beta2 = 0.995 it stops at 0.61, where a step of it is half of the distance to the next."""
    param, state = torch.zeros(1, dtype=torch.bfloat16), {}  # type: tuple[Tensor, dict[str, Tensor]]
    for _ in range(1000):
        constants = group(betas=(0.8, 0.995)) | {"step": 999}
        adamw_step_([param], [torch.ones_like(param)], [state], KERNELS, constants, lr=0.01)
    assert 0.60 < float(state["exp_avg_sq"]) < 0.62
