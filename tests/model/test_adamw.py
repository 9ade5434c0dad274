"""The AdamW step against torch.optim.AdamW and against what its averages must converge to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.optimizers.adamw import adamw_step_
from tests.kernels.bounds import largest

CONSTANTS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}


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
    optimizer = torch.optim.AdamW(theirs, **constants, foreach=False, fused=False)  # type: ignore[arg-type]
    states: list[dict[str, Tensor]] = [{}, {}, {}]
    for _ in range(steps):
        grads = [torch.randn(param.shape, generator=generator, dtype=dtype) for param in ours]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        adamw_step_(ours, grads, states, **constants)  # type: ignore[arg-type]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b.detach(), rtol=20 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps
        )
    assert {state["step"].item() for state in states} == {float(steps)}


@pytest.mark.parametrize("beta2", [0.95, 0.995])
def test_averages_of_a_constant_gradient_reach_it(beta2: float) -> None:
    """bf16 moments do not: there the average of squares stops at 0.61 of its limit."""
    param, state = torch.zeros(3), {}  # type: tuple[Tensor, dict[str, Tensor]]
    gradient = torch.tensor([1.0, -0.5, 3.0])
    for _ in range(4000):
        before = param.clone()
        adamw_step_(
            [param], [gradient.clone()], [state], lr=0.01, betas=(0.8, beta2), eps=1e-10, weight_decay=0.0
        )
    torch.testing.assert_close(state["exp_avg"], gradient)
    torch.testing.assert_close(state["exp_avg_sq"], gradient.square(), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(param - before, -0.01 * gradient.sign(), rtol=1e-3, atol=0.0)


def test_without_gradients_only_the_decay_moves_a_parameter() -> None:
    param, start, state = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), {}  # type: ignore[var-annotated]
    for _ in range(7):
        adamw_step_([param], [torch.zeros(4, dtype=torch.float64)], [state], **CONSTANTS)  # type: ignore[arg-type]
    torch.testing.assert_close(param, start * (1 - 0.02 * 0.1) ** 7)


def test_it_is_odd() -> None:
    torch.manual_seed(0)
    param = torch.randn(5)
    mirrored, states = -param, [{}, {}]  # type: ignore[var-annotated]
    for _ in range(3):
        grad = torch.randn(5)
        adamw_step_([param], [grad.clone()], states[:1], **CONSTANTS)  # type: ignore[arg-type]
        adamw_step_([mirrored], [-grad], states[1:], **CONSTANTS)  # type: ignore[arg-type]
    assert torch.equal(param, -mirrored)
    assert largest(param) > 0
