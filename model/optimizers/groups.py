"""Which parameter trains with what: one optimizer group each, none left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from torch import nn

from model.gpt import GPT


class AdamWConstants(msgspec.Struct, frozen=True, kw_only=True):
    """Constants of one AdamW group; `lr` is already scaled."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class MuonConstants(msgspec.Struct, frozen=True, kw_only=True):
    """Constants of the Muon groups; `lr` and `weight_decay` are already scaled."""

    lr: float
    weight_decay: float
    beta2: float
    polar_steps: int
    polar_norm_scale: float
    equilibrate: str = "none"  # MuonEq before the polar step: "none", "row" or "column"
    renormalise: bool = False  # Muon+ after it


def param_groups(
    model: GPT, adamw: Mapping[str, AdamWConstants], muon: MuonConstants
) -> list[dict[str, Any]]:
    """Groups for `MuonAdamW`: AdamW by name, then Muon by shape, so that a group's matrices stack."""
    named: dict[str, list[nn.Parameter]] = {
        # A table that is both is trained as the head: at an embedding's rate logits would run away.
        "lm_head": [model.wte if model.lm_head is None else model.lm_head],
        "wte": [] if model.lm_head is None else [model.wte],
        "value_embeds": list(model.value_embeds.values()),
        "resid": [model.resid_lambdas],
        "x0": [model.x0_lambdas],
        "smear": list(model.smear.parameters()) if model.smear is not None else [],
    }
    if model.bigrams is not None:
        tables = [model.bigrams.table, *model.bigrams.further_tables]
        named |= {"bigram": tables, "bigram_lambda": [model.bigrams.lambdas]}
    if model.value_lambdas is not None:
        named["value_residual"] = [model.value_lambdas]
    if model.backout_lambda is not None:
        named["smear"].append(model.backout_lambda)
    groups = [_adamw_group(name, params, adamw[name]) for name, params in named.items() if params]
    matrices = list(model.blocks.parameters())
    for shape in sorted({tuple(matrix.shape) for matrix in matrices}):
        groups.append(_muon_group([matrix for matrix in matrices if tuple(matrix.shape) == shape], muon))
    grouped = [id(param) for group in groups for param in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters())), "a parameter is in no group or in two"
    return groups


def _adamw_group(name: str, params: list[nn.Parameter], constants: AdamWConstants) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "adamw",
        "params": params,
        "base_lr": constants.lr,
        "base_weight_decay": constants.weight_decay,
        "betas": constants.betas,
        "eps": constants.eps,
    }


def _muon_group(params: list[nn.Parameter], constants: MuonConstants) -> dict[str, Any]:
    rows, columns = params[0].shape
    return {
        "name": f"matrix {rows}x{columns}",
        "kind": "muon",
        "params": params,
        "base_lr": constants.lr,
        "base_weight_decay": constants.weight_decay,
        "beta2": constants.beta2,
        "polar_steps": constants.polar_steps,
        "polar_norm_scale": constants.polar_norm_scale,
        "equilibrate": constants.equilibrate,
        "renormalise": constants.renormalise,
    }
