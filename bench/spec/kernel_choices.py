"""Which kernels a recipe's model uses on a device, and why some must not. Imports no torch."""

from __future__ import annotations

import msgspec

from bench.spec.recipe import Recipe
from kernels.choices import ALWAYS, CUDA_ONLY, IMPLEMENTATIONS, NOT_ON_MPS, Choice, choose, runs_in
from model.config import ModelConfig
from model.flops import fp8_share


def kernel_choices(recipe: Recipe, config: ModelConfig, device_kind: str) -> tuple[Choice, ...]:
    """The implementation of every op that this model uses, and the reason for it."""
    used = set(ALWAYS)
    used -= set() if config.qk_norm else {"rotary_qk_norm"}
    used |= {"bigram_residual"} if config.bigram_rows else set()
    used |= {"fp8_linear"} if fp8_share(config) else set()
    ops = [op for op in IMPLEMENTATIONS if op in used]
    asked = msgspec.structs.asdict(recipe.kernels)
    return choose(device_kind, asked, ops, recipe.precision.compute)


def kernel_refusals(recipe: Recipe, choices: tuple[Choice, ...], device_kind: str) -> list[str]:
    """What was asked for by name and cannot run here, or not in this dtype."""
    refusals = [
        f"kernels.{choice.op}: {choice.implementation} needs CUDA, this is {device_kind}"
        for choice in choices
        if choice.implementation in CUDA_ONLY and device_kind != "cuda"
    ]
    refusals += [
        f"kernels.{choice.op}: {choice.implementation} is not for MPS; leave it to the plan"
        for choice in choices
        if choice.implementation in NOT_ON_MPS and device_kind == "mps"
    ]
    if device_kind == "mps" and recipe.precision.fp8 != "off":
        refusals.append("precision.fp8 on mps: no Mac multiplies fp8")
    compute = recipe.precision.compute
    if compute == "float16" and recipe.precision.fp8 != "off":
        refusals.append("precision.fp8 with float16: every device that multiplies fp8 has bfloat16")
    return refusals + [
        f"kernels.{choice.op}: {choice.implementation} is not proved in {compute}; leave it to the plan"
        for choice in choices
        if not runs_in(choice.op, choice.implementation, compute)
    ]
