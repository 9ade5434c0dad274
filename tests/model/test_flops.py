"""The arithmetic of parameters and FLOPs equals what the built model holds and does."""

from __future__ import annotations

import msgspec
import pytest
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, parameters, scaling_parameters
from model.layers import Linear
from tests.model.configs import EAGER, VARIANTS, batch, scrambled

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


@variants
def test_parameters_are_the_built_models(config: ModelConfig) -> None:
    model = scrambled(config)
    tied = model.lm_head is None
    owned = {"wte": 0 if tied else model.wte.numel(), "lm_head": model.wte.numel()}
    if model.bigrams is not None:
        tables = [model.bigrams.table, *model.bigrams.further_tables]
        owned |= {
            "bigram": sum(table.numel() for table in tables),
            "bigram_lambda": model.bigrams.lambdas.numel(),
        }
    if model.value_lambdas is not None:
        owned["value_residual"] = model.value_lambdas.numel()
    owned["value_embeds"] = sum(table.numel() for table in model.value_embeds.values())
    owned["matrices"] = sum(param.numel() for param in model.blocks.parameters())
    owned["scalars"] = sum(param.numel() for param in model.parameters()) - sum(owned.values())
    assert parameters(config) == owned
    assert scaling_parameters(config) == owned["matrices"] + owned["lm_head"]
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, Linear))
    assert matmul_parameters(config) == linear + owned["lm_head"]


@variants
def test_flops_are_those_torch_counts(config: ModelConfig) -> None:
    """Exact but for one known term: the smear's gate reads T - 1 of a row's T tokens.

    The windows are full, for a dense attention multiplies what its mask then hides, and the vocabulary needs
    no padding, for padded rows are counted (as nanochat counts them) but never multiplied.
    """
    full = (config.sequence_length,) * config.depth
    config = msgspec.structs.replace(config, window_sizes=full, vocab_size=config.vocab_padded)
    model = scrambled(config, kernels=EAGER)
    tokens, targets = batch(config)
    with FlopCounterMode(display=False) as counter:
        hidden = model(tokens).flatten(0, 1)
        EAGER.linear_cross_entropy(hidden, model.head_weight(), targets.flatten(), config.softcap).backward()
    not_smeared = 6 * config.smear_channels * tokens.shape[0]
    assert counter.get_total_flops() == tokens.numel() * flops_per_token(config) - not_smeared


def test_a_window_counts_the_keys_it_has() -> None:
    config = VARIANTS["run6"]
    full = msgspec.structs.replace(config, window_sizes=(1000,) * config.depth)
    saved_keys = sum(
        config.sequence_length - min(window, config.sequence_length) for window in config.window_sizes
    )
    assert saved_keys == 3 * (24 - 7)
    assert flops_per_token(full) - flops_per_token(config) == 12 * config.width * saved_keys


def test_without_gates_a_layer_has_12_width_squared() -> None:
    """And the head V D: depth 24 of the speedrun."""
    config = msgspec.structs.replace(
        VARIANTS["no levers"],
        depth=24,
        width=1536,
        num_heads=12,
        num_kv_heads=12,
        head_dim=128,
        vocab_padded=32768,
    )
    assert scaling_parameters(config) == 24 * 12 * 1536**2 + 32768 * 1536
