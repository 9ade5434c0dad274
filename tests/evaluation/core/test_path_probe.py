"""The evaluation's own path is probed: cheats and levers it does not know fail, honest models pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.errors import VerificationFailed
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.path_probe import probe_path
from model.gpt import GPT
from model.initial import build
from tests.evaluation.core.tiny_bundle import config
from tests.model.configs import CPU, FUSED, VARIANTS, scrambled


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_honest_models_pass(name: str, dtype: torch.dtype) -> None:
    for model in (scrambled(VARIANTS[name], dtype), build(VARIANTS[name], dtype, FUSED, CPU, seed=3)):
        for seed in range(3):
            result = probe_path(Engine(model, CPU, 240), seed)
            assert result.causality_max_change == 0.0
            assert result.normalisation_max_error < 1e-5


class Cheat(GPT):
    """A model whose forward pass does something to its hidden states."""

    change: Callable[[Tensor, Tensor], Tensor]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states as changed."""
        return self.change(super().forward(tokens_BT), tokens_BT)


class Unnormalised(GPT):
    """A model whose logits depend on what other rows ask."""

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits that grow along the batch."""
        logits = super().logits(hidden_BTD)
        grown: Tensor = logits + torch.arange(len(logits)).view(-1, *[1] * (logits.ndim - 1)) * 1e-2
        ahead = torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(logits)))
        return grown + 0.1 * ahead


def test_a_forward_pass_that_peeks_at_the_target_is_caught() -> None:
    def peek(hidden: Tensor, tokens: Tensor) -> Tensor:
        return hidden + 0.1 * hidden.roll(-1, dims=1)

    for dtype in (torch.float32, torch.bfloat16):
        model = scrambled(config(), dtype)
        model.__class__, model.change = Cheat, peek  # type: ignore[assignment]
        with pytest.raises(VerificationFailed, match="differ by"):
            probe_path(Engine(model, CPU, 480), 0)


def test_a_lever_that_the_cache_does_not_know_is_caught() -> None:
    model = scrambled(config())
    shift = torch.randn(model.config.width, generator=torch.Generator().manual_seed(0))
    model.__class__, model.change = Cheat, lambda hidden, tokens: hidden + 0.01 * shift  # type: ignore[assignment]
    with pytest.raises(VerificationFailed, match="differ by"):
        probe_path(Engine(model, CPU, 480), 0)


def test_branches_that_look_ahead_are_caught() -> None:
    model = scrambled(config())

    class Ahead(Engine):
        def hidden(self, batch: Any) -> Tensor:
            hidden = super().hidden(batch)
            return hidden + 1e-5 * hidden.mean(dim=2, keepdim=True)

    engine = Ahead(model, CPU, 480)
    engine.model.lm_head.data.mul_(300.0)
    with pytest.raises(VerificationFailed, match="not causal"):
        probe_path(engine, 0)


def test_scores_that_are_no_distribution_are_caught() -> None:
    model = scrambled(config())
    model.__class__ = Unnormalised
    with pytest.raises(VerificationFailed, match=r"not causal|probabilities sum"):
        probe_path(Engine(model, CPU, 480), 0)


def test_weights_that_are_not_finite_are_caught() -> None:
    model = scrambled(config())
    with torch.no_grad():
        model.lm_head[3] = float("nan")
    with pytest.raises(VerificationFailed):
        probe_path(Engine(model, CPU, 480), 0)
