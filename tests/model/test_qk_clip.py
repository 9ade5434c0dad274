"""MuonClip: what it does to logits and weights, what it leaves alone, and what it counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.attention import Attention, largest_logits
from model.config import ModelConfig
from model.gpt import GPT, Block
from model.optimizers.qk_clip import QKClip
from tests.model.configs import batch, scrambled, small_config

OBSERVING = small_config(qk_norm=False, observes_logits=True)


def layers(model: GPT) -> list[Attention]:
    return [block.attn for block in model.blocks if isinstance(block, Block)]


def queries_and_keys(model: GPT) -> list[Tensor]:
    return [matrix.weight.detach().clone() for layer in layers(model) for matrix in (layer.c_q, layer.c_k)]


def logits_seen(model: GPT) -> Tensor:
    """Largest logit of each layer's heads [L, H] over one batch, after forgetting what was seen before."""
    QKClip(model, "logit", 1.0).forget()
    model(batch(model.config)[0])
    return torch.stack([layer.seen_logits.clone() for layer in layers(model)])


@pytest.mark.parametrize("window", [0, 3, 100, 700])
def test_the_largest_logit_is_that_of_the_keys_seen(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    q, k = (torch.randn(600, heads, 8, generator=generator) for heads in (4, 2))
    logits = torch.einsum("qhk,whk->hqw", q.double(), k.double().repeat_interleave(2, dim=1)) / math.sqrt(8)
    distance = torch.arange(600)[:, None] - torch.arange(600)
    hidden = (distance < 0) | (distance > window)
    exact = logits.masked_fill(hidden, -math.inf).amax((1, 2))
    assert torch.allclose(largest_logits(q, k, window).double(), exact, atol=1e-5)


def test_observed_are_the_models_own_logits_of_the_first_row() -> None:
    model = scrambled(OBSERVING)
    seen = logits_seen(model)
    tokens, _ = batch(OBSERVING)
    changed = tokens.clone()
    changed[1:] = (changed[1:] + 1) % OBSERVING.vocab_size
    QKClip(model, "logit", 1.0).forget()
    model(changed)
    assert torch.equal(torch.stack([layer.seen_logits for layer in layers(model)]), seen)
    with torch.no_grad():
        model(changed.roll(1, 1))  # an evaluation is not observed
    assert torch.equal(torch.stack([layer.seen_logits for layer in layers(model)]), seen)


def test_no_logit_of_the_first_layer_is_above_tau_after_a_clip() -> None:
    """The first layer alone: what the others see changes with it."""
    model = scrambled(OBSERVING)
    before = logits_seen(model)
    tau = float(before[0].median())
    model(batch(OBSERVING)[0])
    QKClip(model, "logit", tau)()
    after = logits_seen(model)
    assert (before[0] > tau).any()
    assert (before[0] < tau).any()
    assert torch.allclose(after[0], before[0].clamp_max(tau), rtol=1e-5)


@pytest.mark.parametrize("config", [OBSERVING, small_config()], ids=["logit", "weight_rms"])
def test_what_is_not_too_large_keeps_its_bits(config: ModelConfig) -> None:
    model = scrambled(config)
    model(batch(config)[0])
    clip = QKClip(model, "logit" if config.observes_logits else "weight_rms", 1e6)
    before = queries_and_keys(model)
    clip()
    assert all(torch.equal(x, y) for x, y in zip(before, queries_and_keys(model), strict=True))
    assert clip.counts.tolist() == [0, 4 * config.num_heads if config.observes_logits else len(before)]


def test_weights_are_scaled_to_the_root_of_tau() -> None:
    model = scrambled(small_config())
    others = {
        name: p.clone() for name, p in model.named_parameters() if "c_q" not in name and "c_k" not in name
    }
    with torch.no_grad():
        layers(model)[0].c_q.weight.mul_(50.0)
    before = queries_and_keys(model)
    clip = QKClip(model, "weight_rms", 4.0)
    clip()
    large = 0
    for old, new in zip(before, queries_and_keys(model), strict=True):
        rms = torch.linalg.svdvals(old).square().mean().sqrt()
        large += int(rms > 2.0)
        assert torch.allclose(new, old * min(1.0, 2.0 / float(rms)), rtol=1e-5)
    assert large >= 1
    assert clip.counts.tolist() == [large, len(before)]
    assert all(torch.equal(p, others[name]) for name, p in model.named_parameters() if name in others)


def test_with_qk_norm_the_weights_scale_is_no_function_of_the_model() -> None:
    """Why pull 733's clip does not change what its model computes (up to the norm's epsilon)."""
    model = scrambled(small_config())
    tokens, _ = batch(model.config)
    with torch.no_grad():
        before = model(tokens)
        QKClip(model, "weight_rms", 0.25)()
        after = model(tokens)
    assert torch.allclose(before, after, atol=1e-4)
