"""The probes: an honest model passes, and each way of cheating is told by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from torch import Tensor

from bench.errors import VerificationFailed
from bench.evaluation.probes import (
    PROBE_TOKENS,
    _largest_change,
    check_frozen,
    probe,
    probed_tokens,
    weights_sha256,
)
from kernels.sliding_window_attention import BLOCK
from model.config import ModelConfig
from model.gpt import GPT
from model.initial import build
from tests.model.configs import CPU, FUSED, VARIANTS, scrambled

SEEDS = range(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_honest_models_pass(name: str, dtype: torch.dtype) -> None:
    for model in (
        scrambled(VARIANTS[name], dtype),
        build(VARIANTS[name], dtype, FUSED, CPU, seed=3),  # not trained at all: logits of 1e-2
    ):
        result = probe(model, CPU, seed=1)
        assert result.causality_max_change == 0.0  # measured on the CPU: rows of one shape, equal arithmetic
        assert result.normalisation_max_error < 1e-12
        assert result.loss_max_error < 1e-5 if dtype == torch.float32 else result.loss_max_error < 1e-2
        assert result.weights_sha256 == weights_sha256(model)


class Cheat(GPT):
    """A trained model with something done to its hidden states."""

    change: Callable[[Tensor, Tensor], Tensor]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states as changed."""
        return self.change(super().forward(tokens_BT), tokens_BT)


def cheat(
    change: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype = torch.float32,
    config: ModelConfig = VARIANTS["run6"],
) -> GPT:
    """A model whose hidden states go through `change`."""
    model = scrambled(config, dtype)
    model.__class__ = Cheat
    model.change = change  # type: ignore[assignment]
    return model


def peek(hidden: Tensor, tokens: Tensor) -> Tensor:
    """A little of the next token's state."""
    return hidden + 0.05 * hidden.roll(-1, dims=1)


def peek_at_the_end(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Something of all tokens, by their mean."""
    return hidden + 0.2 * hidden.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [peek, peek_at_the_end])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_sees_its_target_fails(
    change: Callable[[Tensor, Tensor], Tensor], seed: int, dtype: torch.dtype
) -> None:
    with pytest.raises(VerificationFailed, match="not causal"):
        probe(cheat(change, dtype), CPU, seed)


LONG = msgspec.structs.replace(
    VARIANTS["run6"], sequence_length=600, window_sizes=(150, *VARIANTS["run6"].window_sizes[1:-1], 600)
)


@pytest.mark.parametrize("first", [BLOCK - 1, BLOCK, 200, 400])
def test_a_leak_far_into_a_row_is_found(first: int) -> None:
    """Each of these positions is within the probe, which goes over a short window and two blocks."""

    def peek_late(hidden: Tensor, tokens: Tensor) -> Tensor:
        later = torch.arange(hidden.shape[1]) >= first
        return torch.where(later[:, None], hidden + 0.05 * hidden.roll(-1, dims=1), hidden)

    assert first + 1 < probed_tokens(scrambled(LONG)) < LONG.sequence_length
    with pytest.raises(VerificationFailed, match="not causal"):
        probe(cheat(peek_late, config=LONG), CPU, 0)


def test_a_change_that_is_no_number_is_the_largest() -> None:
    """Wherever it stands among more positions than are looked at together."""
    logits = cast("GPT", SimpleNamespace(logits=lambda hidden: hidden))
    before, after = torch.zeros(1, 4 * PROBE_TOKENS, 3), torch.ones(1, 4 * PROBE_TOKENS, 3)
    assert _largest_change(logits, before, after) == 1.0
    assert _largest_change(logits, before, before) == 0.0
    for place in (0, PROBE_TOKENS, 4 * PROBE_TOKENS - 1):
        spoiled = after.clone()
        spoiled[0, place, 1] = torch.nan
        assert math.isnan(_largest_change(logits, before, spoiled))


def test_a_block_that_sees_the_next_one_fails() -> None:
    def over_the_border(hidden: Tensor, tokens: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[:, BLOCK - 1] += 0.05 * hidden[:, BLOCK]
        return changed

    with pytest.raises(VerificationFailed, match=f"tokens from {BLOCK} on"):
        probe(cheat(over_the_border, config=LONG), CPU, 0)


def test_an_attention_without_its_mask_fails() -> None:
    model = scrambled(VARIANTS["run6"])

    def unmasked(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

    for block in model.blocks:
        block.attn.kernels = block.attn.kernels._replace(attention=unmasked)
    with pytest.raises(VerificationFailed, match="not causal"):
        probe(model, CPU, 0)


def test_a_constant_fails() -> None:
    with pytest.raises(VerificationFailed, match="do not depend on the tokens"):
        probe(cheat(lambda hidden, tokens: torch.ones_like(hidden)), CPU, 0)


def test_logits_that_are_not_finite_fail() -> None:
    def spoil(hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.where((tokens % 7 == 0)[..., None], torch.nan, hidden)

    with pytest.raises(VerificationFailed):
        probe(cheat(spoil), CPU, 0)


def without_normaliser(honest: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Scores minus the target's capped logit alone: no probabilities."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str) -> Tensor:
        logits = softcap * torch.tanh((hidden @ weight.T) / softcap)
        return -logits.gather(-1, targets[:, None])[:, 0]

    return loss


def flattered(honest: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One per cent less loss."""
    return lambda *arguments, **options: 0.99 * honest(*arguments, **options)


def forgetful(honest: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The last vocabulary entries are left out of the normaliser."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
        return honest(hidden, weight[:60], targets.clamp_max(59), **options)

    return loss


def wrong_softcap(honest: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Another cap than the model's."""

    def loss(*arguments: Any, softcap: float, **options: Any) -> Tensor:
        return honest(*arguments, softcap=softcap * 1.3, **options)

    return loss


@pytest.mark.parametrize("wrong", [without_normaliser, flattered, forgetful, wrong_softcap])
def test_a_loss_that_is_not_the_models_fails(wrong: Callable[..., Callable[..., Tensor]]) -> None:
    model = scrambled(VARIANTS["run6"])
    model.kernels = model.kernels._replace(linear_cross_entropy=wrong(model.kernels.linear_cross_entropy))
    with pytest.raises(VerificationFailed, match="the loss differs"):
        probe(model, CPU, 0)


def test_a_changed_weight_is_noticed() -> None:
    model = scrambled(VARIANTS["run6"])
    before = weights_sha256(model)
    check_frozen(before, weights_sha256(model))
    for name, param in model.named_parameters():
        kept = param.detach().clone()
        with torch.no_grad():
            param.view(-1)[-1] = torch.nextafter(param.view(-1)[-1], torch.tensor(9.0))
        with pytest.raises(VerificationFailed, match="weights changed"):
            check_frozen(before, weights_sha256(model))
        assert name
        with torch.no_grad():
            param.copy_(kept)
    check_frozen(before, weights_sha256(model))


def test_swapped_weights_have_another_hash() -> None:
    model = scrambled(VARIANTS["run6"])
    before = weights_sha256(model)
    first, second = model.blocks[0].mlp.c_fc.weight, model.blocks[1].mlp.c_fc.weight
    first.data, second.data = second.data, first.data
    assert weights_sha256(model) != before
