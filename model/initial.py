"""Initial weights: every parameter and buffer filled, from one generator on the CPU.

| parameter | distribution |
| --- | --- |
| wte, lm_head | normal, `wte_std` and `lm_head_std`; a table that is both starts as the head |
| c_q, c_k, c_v, value embeddings | uniform of standard deviation 1/sqrt(width) |
| of latent attention | uniform of standard deviation 1/sqrt(input's width) |
| c_fc | the same times `c_fc_scale` |
| both c_proj, output gates, bigram tables | zero |
| the other gates | uniform in [0, max] |
| lambdas | linear over the layers; constants for the others |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from model.attention import rotary_tables
from model.config import ModelConfig
from model.gpt import GPT, Block


class _Filler:
    """Fills tensors on any device from one generator on the CPU: every device starts from the same bits."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=self._generator) * std)

    def uniform(self, tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=self._generator) * (high - low) + low)


@torch.no_grad()
def init_weights(model: GPT, generator: torch.Generator) -> None:
    """Fill the whole model; the order of the draws is part of the result."""
    config, init, fill = model.config, model.config.init, _Filler(generator)
    fill.normal(model.wte, init.lm_head_std if model.lm_head is None else init.wte_std)
    if model.lm_head is not None:
        fill.normal(model.lm_head, init.lm_head_std)
    bound = (3.0 / config.width) ** 0.5  # a uniform of this bound has standard deviation 1/sqrt(width)
    for table in model.value_embeds.values():
        fill.uniform(table, -bound, bound)
    for block in model.blocks:
        assert isinstance(block, Block)
        _init_block(block, config, fill, bound)
    _init_outside_blocks(model, fill)
    cos, sin = rotary_tables(config, model.wte.device, model.compute_dtype)
    model.cos.copy_(cos)
    model.sin.copy_(sin)


def _init_block(block: Block, config: ModelConfig, fill: _Filler, bound: float) -> None:
    if block.attn.latent is None:
        for matrix in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
            fill.uniform(matrix.weight, -bound, bound)
    else:
        for matrix in block.attn.latent.matrices():
            own_bound = (3.0 / matrix.weight.shape[1]) ** 0.5
            fill.uniform(matrix.weight, -own_bound, own_bound)
    scaled = bound * config.init.c_fc_scale
    fill.uniform(block.mlp.c_fc.weight, -scaled, scaled)
    for matrix in (block.attn.c_proj, block.mlp.c_proj):
        matrix.weight.zero_()
    if block.attn.ve_gate is not None:
        fill.uniform(block.attn.ve_gate.weight, 0.0, config.init.ve_gate_max)
    if block.attn.output_gate is not None:
        block.attn.output_gate.weight.zero_()
    if config.observes_logits:
        block.attn.seen_logits.fill_(float("-inf"))


def _init_outside_blocks(model: GPT, fill: _Filler) -> None:
    init = model.config.init
    _linear_over_layers(model.resid_lambdas, init.resid_lambda_first, init.resid_lambda_last)
    _linear_over_layers(model.x0_lambdas, init.x0_lambda_first, init.x0_lambda_last)
    if model.smear is not None:
        fill.uniform(model.smear.gate.weight, 0.0, init.smear_gate_max)
        model.smear.scale.fill_(init.smear_lambda)
    if model.bigrams is not None:
        for table in (model.bigrams.table, *model.bigrams.further_tables):
            table.zero_()
        model.bigrams.lambdas.fill_(init.bigram_lambda)
    if model.value_lambdas is not None:
        model.value_lambdas.fill_(init.value_residual_lambda)
    if model.backout_lambda is not None:
        model.backout_lambda.fill_(init.backout_lambda)


def _linear_over_layers(lambdas: nn.Parameter, first: float, last: float) -> None:
    lambdas.copy_(torch.linspace(first, last, lambdas.shape[0]))


def build(
    config: ModelConfig, compute_dtype: torch.dtype, kernels: Kernels, device: torch.device, seed: int
) -> GPT:
    """A model on `device`, initialised from `seed`."""
    with torch.device("meta"):
        model = GPT(config, compute_dtype, kernels)
    model.to_empty(device=device)
    init_weights(model, torch.Generator().manual_seed(seed))
    return model
