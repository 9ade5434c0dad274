"""How batch, learning rates and weight decay go with a model's size and its horizon. Imports no torch."""

from __future__ import annotations

import math

import msgspec

from bench.spec.recipe import AdamW, Recipe

# Where the recipes' learning rates, decays and batch were tuned (nanochat, dev/LOG.md and base_train.py).
REFERENCE_DEPTH = 12
REFERENCE_BATCH_TOKENS = 2**19
REFERENCE_WIDTH = 768
BATCH_EXPONENT = 0.383  # Power Lines, arXiv 2505.13738: optimal batch grows as tokens^0.383
# AdamW groups whose learning rate goes with 1/sqrt(width), and with the batch (nanochat's setup_optimizer).
WIDTH_SCALED = ("lm_head", "wte", "value_embeds", "bigram", "bigram_lambda")
BATCH_SCALED = ("lm_head", "wte", "value_embeds", "bigram", "bigram_lambda", "resid", "x0", "value_residual")


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Learning rates and decays after all scaling."""

    matrix_lr: float
    weight_decay: float
    adamw_lr: dict[str, float]
    batch_lr_scale: float
    width_lr_scale: float


def auto_batch_tokens(horizon_ratio: float) -> int:
    """2^round(log2(2^19 x (D/D_d12)^0.383)); `horizon_ratio` is D/D_d12."""
    return int(2 ** round(math.log2(REFERENCE_BATCH_TOKENS * horizon_ratio**BATCH_EXPONENT)))


def batch_tokens(recipe: Recipe, horizon_ratio: float) -> int:
    """Tokens a step: as given, or the automatic number times [scaling]'s factor, in whole rows."""
    if recipe.batch.tokens != "auto":
        return recipe.batch.tokens
    rows = auto_batch_tokens(horizon_ratio) * recipe.scaling.batch / recipe.model.sequence_length
    return max(round(rows), 1) * recipe.model.sequence_length


def scaled_rates(recipe: Recipe, width: int, batch_tokens: int, horizon_ratio: float) -> Rates:
    """LR x sqrt(B/2^19); AdamW's also x sqrt(768/width); weight decay x sqrt(B/2^19) x D_d12/D.

    The last keeps tau = B / (eta lambda D) constant (arXiv 2405.13698) when eta goes with sqrt(B); the rule
    "depth-squared" is x (12/depth)^2 instead. [scaling] multiplies what comes out.
    """
    batch_scale = math.sqrt(batch_tokens / REFERENCE_BATCH_TOKENS)
    width_scale = math.sqrt(REFERENCE_WIDTH / width)
    muon = recipe.optimizer.muon
    adamw_lr = {
        group: getattr(recipe.optimizer.adamw, group).lr
        * (width_scale if group in WIDTH_SCALED else 1.0)
        * (batch_scale if group in BATCH_SCALED else 1.0)
        * recipe.scaling.learning_rate
        for group in AdamW.__struct_fields__
    }
    if muon.weight_decay_rule == "depth-squared":
        decay_scale = (REFERENCE_DEPTH / recipe.model.depth) ** 2
    else:
        decay_scale = batch_scale / horizon_ratio
    return Rates(
        matrix_lr=muon.lr * batch_scale * recipe.scaling.learning_rate,
        weight_decay=muon.weight_decay * decay_scale * recipe.scaling.weight_decay,
        adamw_lr=adamw_lr,
        batch_lr_scale=batch_scale,
        width_lr_scale=width_scale,
    )


def tau(batch_tokens: int, rates: Rates, tokens: int) -> float:
    """B / (eta lambda D): the share of the run over which weight decay forgets; inf without decay."""
    product = rates.matrix_lr * rates.weight_decay * tokens
    return batch_tokens / product if product else math.inf
