"""A lever that is off changes no bit: not by its constants, nor by what it would have added to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.data.prepared import Prepared
from tests.data.shards import prepare_tiny
from tests.training.test_activity import built, losses

STEPS = 3
# Lever -> other constants for it, all without effect while it is off.
CONSTANTS: dict[str, dict[str, Any]] = {
    "MuonClip": {"optimizer": {"muon": {"qk_clip": "off", "qk_clip_tau": 0.01}}},
    "Muon+ and MuonEq": {"optimizer": {"muon": {"renormalise": False, "equilibrate": "none"}}},
    "bigrams": {"model": {"bigram": {"factor": 0, "num_hashes": 3, "lambda_init": 0.7, "mask_bos": True}}},
    "rates of bigrams": {
        "optimizer": {"adamw": {"bigram": {"lr": 1.0}, "bigram_lambda": {"lr": 1.0, "beta2": 0.5}}}
    },
    "value residual": {
        "model": {"value_residual": False, "value_residual_lambda": 0.9},
        "optimizer": {"adamw": {"value_residual": {"lr": 1.0}}},
    },
    "latent attention": {"model": {"latent_attention": {"kv_rank": 0, "q_rank": 8, "rope_dim": 8}}},
    "attention gate": {"model": {"attention_gate_channels": 0}},
    "z-loss": {"loss": {"z_loss": 0.0}},
    "batch warm-up": {"schedule": {"batch_warmup": {"ratio": 0.0, "tokens": 0, "start": 0.1}}},
    "collection by hand": {"compile": {"manual_gc_every_steps": 0}},
    "embeddings": {"precision": {"embeddings": "float32"}},
    "fp8": {"precision": {"fp8": "off", "fp8_min_dim": 16}},
    "loss scale": {"precision": {"initial_loss_scale": 8.0, "loss_scale_growth_steps": 1}},
    "multipliers": {"scaling": {"learning_rate": 1.0, "weight_decay": 1.0}},
}
# Lever that is on in nanochat -> off, and other constants for it, without effect then.
TURNED_OFF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smear": (
        {"model": {"smear": False}},
        {"model": {"smear": False, "smear_lambda": 0.9, "smear_gate_init": 0.5, "smear_channels": 8}},
    ),
    "backout": (
        {"model": {"backout": False}},
        {"model": {"backout": False, "backout_lambda": 0.9}},
    ),
    "value embeddings": (
        {"model": {"value_embeddings": "none"}},
        {
            "model": {"value_embeddings": "none", "ve_gate_range": 9.0, "ve_gate_init": 0.5},
            "optimizer": {"adamw": {"value_embeds": {"lr": 1.0}}},
        },
    ),
    "rotary positions": (
        {"model": {"positions": "none"}},
        {"model": {"positions": "none", "rope_base": 10.0}},
    ),
    "warm-up in steps": (
        {"schedule": {"warmup_ratio": 0.5}},
        {"schedule": {"warmup_ratio": 0.5, "warmup_steps": 1}},
    ),
    "tied embeddings": (
        {"model": {"tied_embeddings": True}},
        {"model": {"tied_embeddings": True}, "optimizer": {"adamw": {"wte": {"lr": 1.0}}}},
    ),
    "weight decay": (
        {"optimizer": {"muon": {"weight_decay": 0.0}}},
        {"optimizer": {"muon": {"weight_decay": 0.0, "weight_decay_shape": "linear"}}},
    ),
    "clip by logit": (
        {"model": {"qk_norm": False}},
        {"model": {"qk_norm": False}, "optimizer": {"muon": {"qk_clip": "logit", "qk_clip_tau": 1e6}}},
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus of the tiny recipe's vocabulary."""
    return prepare_tiny(tmp_path_factory.mktemp("prepared"), vocab_size=384)


def outcome(root: Path, prepared: Prepared, changes: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of a few steps, and the parameters after them by name."""
    plan, trainer = built(root, **changes)
    seen = losses(trainer, plan, prepared, 0, STEPS)
    return seen, dict(trainer.model.named_parameters())


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory, prepared: Prepared
) -> tuple[list[float], dict[str, Tensor]]:
    """The recipe that says nothing of any lever."""
    return outcome(tmp_path_factory.mktemp("base"), prepared, {})


def assert_same(
    one: tuple[list[float], dict[str, Tensor]], other: tuple[list[float], dict[str, Tensor]]
) -> None:
    """The same bits, in parameters of the same names."""
    assert one[0] == other[0]
    assert len(one[0]) == STEPS
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(param, other[1][name]) for name, param in one[1].items())


@pytest.mark.parametrize("changes", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_of_what_is_off_change_no_bit(
    tmp_path: Path, prepared: Prepared, base: tuple[list[float], dict[str, Tensor]], changes: dict[str, Any]
) -> None:
    assert_same(outcome(tmp_path, prepared, changes), base)


@pytest.mark.parametrize(("off", "changes"), TURNED_OFF.values(), ids=TURNED_OFF)
def test_what_is_turned_off_leaves_nothing_behind(
    tmp_path: Path,
    prepared: Prepared,
    base: tuple[list[float], dict[str, Tensor]],
    off: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    without = outcome(tmp_path, prepared, off)
    assert_same(outcome(tmp_path, prepared, changes), without)
    assert without[0] != base[0]
