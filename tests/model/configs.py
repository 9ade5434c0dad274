"""Small models for the tests."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from kernels.choices import choose
from kernels.dispatch import Kernels, bind
from model.config import (
    InitConfig,
    LatentAttention,
    ModelConfig,
    padded_vocab,
    value_embedding_layers,
    window_sizes,
)
from model.gpt import GPT
from model.initial import build

INIT = InitConfig(
    wte_std=0.8,
    lm_head_std=0.001,
    c_fc_scale=0.4,
    ve_gate_max=0.02,
    smear_gate_max=0.02,
    smear_lambda=0.0,
    backout_lambda=0.2,
    resid_lambda_first=1.15,
    resid_lambda_last=1.05,
    x0_lambda_first=0.20,
    x0_lambda_last=0.05,
)
VALUE_RESIDUAL = msgspec.structs.replace(INIT, value_residual_lambda=0.5)
LATENT = LatentAttention(kv_rank=10, q_rank=0, rope_dim=4)
CPU = torch.device("cpu")
FUSED = bind(choose("cpu"), compiled=False)
EAGER = bind((), compiled=False)


def small_config(**changes: Any) -> ModelConfig:
    """Run 6 in miniature: grouped heads, a short window, every lever on; vocabulary 70, padded to 128."""
    depth = changes.pop("depth", 4)
    config = ModelConfig(
        depth=depth,
        width=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=70,
        vocab_padded=padded_vocab(70),
        sequence_length=24,
        window_sizes=window_sizes("SSSL", depth, 24, 7),
        rope_base=100_000.0,
        qk_scale=1.2,
        softcap=15.0,
        value_embedding_layers=value_embedding_layers("alternate", depth),
        ve_gate_channels=12,
        ve_gate_range=3.0,
        smear_channels=24,
        backout_layer=depth // 2,
        init=INIT,
    )
    return msgspec.structs.replace(config, **changes)


VARIANTS = {
    "run6": small_config(),
    "full heads": small_config(num_kv_heads=4),
    "no levers": small_config(value_embedding_layers=(), smear_channels=0, backout_layer=-1, softcap=0.0),
    "one layer": small_config(depth=1, backout_layer=-1),  # a backout is undone by the norm
    "bigrams": small_config(bigram_rows=5 * 70),
    "bigrams of three hashes": small_config(bigram_rows=99, bigram_hashes=3, bigram_masked_token=61),
    "bigrams but across documents": small_config(bigram_rows=99, bigram_masked_token=61),
    "value residual": small_config(num_kv_heads=1, value_residual=True, init=VALUE_RESIDUAL),
    "value residual alone": small_config(
        depth=3, num_kv_heads=4, value_residual=True, value_embedding_layers=(), init=VALUE_RESIDUAL
    ),
    "latent attention": small_config(num_kv_heads=4, latent=LATENT, smear_channels=0),
    "latent attention of latent queries": small_config(
        num_kv_heads=4, latent=msgspec.structs.replace(LATENT, q_rank=12), qk_norm=False, depth=3
    ),
    "gated output": small_config(attention_gate_channels=7),
    "no positions": small_config(rotary=False),
    "no QK norm": small_config(qk_norm=False),
    "tied": small_config(tied_embeddings=True),
    "odd depth": small_config(depth=3, softcap=20.0, ve_gate_channels=5),
}


def scrambled(config: ModelConfig, dtype: torch.dtype = torch.float32, kernels: Kernels = FUSED) -> GPT:
    """A model in which every parameter matters: none is zero, gates and lambdas are not neutral."""
    model = build(config, dtype, kernels, CPU, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator)
            fan_in = param.shape[1] if param.ndim == 2 else 4
            param.copy_(0.7 + 0.3 * noise if param.ndim == 1 else noise * fan_in**-0.5)
        if model.lm_head is not None:
            model.lm_head.mul_(4.0)
    return model


def batch(config: ModelConfig, rows: int = 2, tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Tokens and targets, some of them ignored."""
    generator = torch.Generator().manual_seed(2)
    shape = (rows, (tokens or config.sequence_length) + 1)
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
    targets = ids[:, 1:].clone()
    targets[:, ::5] = -1
    return ids[:, :-1], targets
