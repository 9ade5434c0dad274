"""Optimizer groups: every parameter in exactly one, by the names and shapes that its optimizer needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.flops import parameters
from model.optimizers.combined import MuonAdamW
from model.optimizers.groups import AdamWConstants, MuonConstants, param_groups
from model.schedule import StepScales
from tests.model.configs import VARIANTS, batch, scrambled

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
NAMES = (
    "lm_head",
    "wte",
    "value_embeds",
    "resid",
    "x0",
    "smear",
    "bigram",
    "bigram_lambda",
    "value_residual",
)
ADAMW = {
    name: AdamWConstants(lr=0.01 * (i + 1), betas=(0.8, 0.9 + 0.01 * i), eps=1e-10, weight_decay=0.001 * i)
    for i, name in enumerate(NAMES)
}
MUON = MuonConstants(lr=0.02, weight_decay=0.2, beta2=0.9, polar_steps=5, polar_norm_scale=1.01)


@variants
def test_every_parameter_is_in_one_group(config: ModelConfig) -> None:
    model = scrambled(config)
    groups = param_groups(model, ADAMW, MUON)
    grouped = [id(param) for group in groups for param in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    assert all(group["params"] for group in groups)
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
    counts = parameters(config)
    for name in ("wte", "lm_head", "value_embeds", "bigram", "bigram_lambda", "value_residual"):
        assert sizes.get(name, 0) == counts.get(name, 0)
    muon = [group for group in groups if group["kind"] == "muon"]
    assert sum(p.numel() for group in muon for p in group["params"]) == counts["matrices"]
    for group in muon:
        assert len({param.shape for param in group["params"]}) == 1
        assert (group["base_lr"], group["base_weight_decay"]) == (MUON.lr, MUON.weight_decay)
        assert (group["equilibrate"], group["renormalise"]) == ("none", False)
    for group in groups:
        if group["kind"] == "adamw":
            given = ADAMW[group["name"]]
            assert (group["base_lr"], group["betas"], group["eps"]) == (given.lr, given.betas, given.eps)
            assert group["base_weight_decay"] == given.weight_decay


def test_a_parameter_without_a_group_is_an_error() -> None:
    model = scrambled(VARIANTS["run6"])
    model.forgotten = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="in no group"):
        param_groups(model, ADAMW, MUON)


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_lower_the_loss(config: ModelConfig, dtype: torch.dtype) -> None:
    """Twenty steps on one batch, as training takes them."""
    model = scrambled(config, dtype)
    optimizer = MuonAdamW(param_groups(model, ADAMW, MUON), dtype, model.kernels)
    tokens, targets = batch(config)
    losses = []
    for _ in range(20):
        hidden = model(tokens).flatten(0, 1)
        loss = model.kernels.linear_cross_entropy(
            hidden, model.head_weight(), targets.flatten(), config.softcap
        )
        loss.backward()
        optimizer.step(StepScales(learning_rate=1.0, momentum=0.9, weight_decay=1.0))
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
