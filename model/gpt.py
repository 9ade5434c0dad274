"""nanochat's GPT of Run 6: rotary positions, QK norm, relu^2, untied head, value embeddings, smear, backout.

Parameters are float32 masters; activations are in one explicit compute dtype. The module is built on the meta
device and filled by `init_weights` only. `forward` ends at the hidden states: the head belongs to the loss,
which never holds all logits.

Shapes: B batch, T tokens, D width, V vocabulary, L depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from kernels.reference import rms_norm
from model.attention import Attention, rotary_tables
from model.config import ModelConfig
from model.flops import MLP_EXPANSION
from model.layers import Linear


class MLP(nn.Module):
    """Two linear maps around relu squared."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.c_fc = Linear(config.width, MLP_EXPANSION * config.width)
        self.c_proj = Linear(MLP_EXPANSION * config.width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.kernels.relu_squared_mlp(x_BTD, self.c_fc.weight, self.c_proj.weight)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to a residual stream that the embedding is mixed into first."""

    def __init__(self, config: ModelConfig, layer: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.attn = Attention(config, layer, kernels)
        self.mlp = MLP(config, kernels)

    def forward(
        self,
        x_BTD: Tensor,
        x0_BTD: Tensor,
        scales: tuple[Tensor, Tensor],
        value_embedding_BTD: Tensor | None,
        tables: tuple[Tensor, Tensor],
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; `scales` are of x and x0, float32: in bf16 steps below 0.008 are lost."""
        x_BTD, normed_BTD = self.kernels.mix_rms_norm(x_BTD, x0_BTD, *scales)
        x_BTD = x_BTD + self.attn(normed_BTD, value_embedding_BTD, *tables)
        x_BTD = x_BTD + self.mlp(rms_norm(x_BTD))
        return x_BTD


class Smear(nn.Module):
    """Adds a gated share of the previous token's embedding to each token's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels = config.smear_channels
        self.gate = Linear(config.smear_channels, 1)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; the first token of a row stays as it is."""
        gate_BT1 = self.scale.to(x_BTD.dtype) * torch.sigmoid(self.gate(x_BTD[:, 1:, : self.channels]))
        return torch.cat((x_BTD[:, :1], x_BTD[:, 1:] + gate_BT1 * x_BTD[:, :-1]), dim=1)


class GPT(nn.Module):
    """The whole model; see the file's head.

    Args:
        config: every shape and constant.
        compute_dtype: dtype of activations and of the weights at use.
        kernels: the implementations to call.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.compute_dtype, self.kernels = config, compute_dtype, kernels
        self.wte = nn.Parameter(torch.empty(config.vocab_padded, config.width))
        self.value_embeds = nn.ParameterDict(
            {
                str(layer): nn.Parameter(torch.empty(config.vocab_padded, config.kv_width))
                for layer in config.value_embedding_layers
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer, kernels) for layer in range(config.depth))
        self.lm_head = nn.Parameter(torch.empty(config.vocab_padded, config.width))
        self.resid_lambdas = nn.Parameter(torch.empty(config.depth))
        self.x0_lambdas = nn.Parameter(torch.empty(config.depth))
        self.smear = Smear(config) if config.smear_channels else None
        self.backout_lambda = nn.Parameter(torch.empty(1)) if config.backout_layer >= 0 else None
        cos, sin = rotary_tables(config, self.wte.device, compute_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> normalised hidden states [B, T, D] in the compute dtype."""
        T = tokens_BT.shape[1]
        tables = self.cos[:, :T], self.sin[:, :T]
        x_BTD = rms_norm(self.kernels.embedding(self.wte, tokens_BT, self.compute_dtype))
        if self.smear is not None:
            x_BTD = self.smear(x_BTD)
        x0_BTD, middle_BTD = x_BTD, None
        for layer, block in enumerate(self.blocks):
            scales = self.resid_lambdas[layer], self.x0_lambdas[layer]
            x_BTD = block(x_BTD, x0_BTD, scales, self.value_embedding(layer, tokens_BT), tables)
            if layer == self.config.backout_layer:
                middle_BTD = x_BTD
        if middle_BTD is not None and self.backout_lambda is not None:
            x_BTD = x_BTD - self.backout_lambda.to(x_BTD.dtype) * middle_BTD
        return rms_norm(x_BTD)

    def value_embedding(self, layer: int, tokens_BT: Tensor) -> Tensor | None:
        """The layer's value embedding of each token, [B, T, G*K], where it has one."""
        if str(layer) not in self.value_embeds:
            return None
        return self.kernels.embedding(self.value_embeds[str(layer)], tokens_BT, self.compute_dtype)

    def head_weight(self) -> Tensor:
        """The head's rows of the real vocabulary, [V, D] float32."""
        return self.lm_head[: self.config.vocab_size]

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Soft-capped logits [B, T, V] in float32, for probes and sampling; training never calls it."""
        logits_BTV = (hidden_BTD @ self.head_weight().to(hidden_BTD.dtype).T).float()
        softcap = self.config.softcap
        return softcap * torch.tanh(logits_BTV / softcap) if softcap else logits_BTV


@torch.no_grad()
def init_weights(model: GPT, generator: torch.Generator) -> None:
    """Fill every parameter and buffer, from one generator on the CPU: every device starts from the same bits.

    | parameter | distribution |
    | --- | --- |
    | wte, lm_head | normal, `wte_std` and `lm_head_std` |
    | c_q, c_k, c_v, value embeddings | uniform of standard deviation 1/sqrt(width) |
    | c_fc | the same times `c_fc_scale` |
    | both c_proj | zero |
    | gates | uniform in [0, max] |
    | lambdas | linear over the layers; constants for smear and backout |
    """
    config, init = model.config, model.config.init
    bound = (3.0 / config.width) ** 0.5  # a uniform of this bound has standard deviation 1/sqrt(width)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    normal(model.wte, init.wte_std)
    normal(model.lm_head, init.lm_head_std)
    for table in model.value_embeds.values():
        uniform(table, -bound, bound)
    for block in model.blocks:
        assert isinstance(block, Block)
        for matrix in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
            uniform(matrix.weight, -bound, bound)
        uniform(block.mlp.c_fc.weight, -bound * init.c_fc_scale, bound * init.c_fc_scale)
        for matrix in (block.attn.c_proj, block.mlp.c_proj):
            matrix.weight.zero_()
        if block.attn.ve_gate is not None:
            uniform(block.attn.ve_gate.weight, 0.0, init.ve_gate_max)
    model.resid_lambdas.copy_(torch.linspace(init.resid_lambda_first, init.resid_lambda_last, config.depth))
    model.x0_lambdas.copy_(torch.linspace(init.x0_lambda_first, init.x0_lambda_last, config.depth))
    if model.smear is not None:
        uniform(model.smear.gate.weight, 0.0, init.smear_gate_max)
        model.smear.scale.fill_(init.smear_lambda)
    if model.backout_lambda is not None:
        model.backout_lambda.fill_(init.backout_lambda)
    cos, sin = rotary_tables(config, model.wte.device, model.compute_dtype)
    model.cos.copy_(cos)
    model.sin.copy_(sin)


def build(
    config: ModelConfig, compute_dtype: torch.dtype, kernels: Kernels, device: torch.device, seed: int
) -> GPT:
    """A model on `device`, initialised from `seed`."""
    with torch.device("meta"):
        model = GPT(config, compute_dtype, kernels)
    model.to_empty(device=device)
    init_weights(model, torch.Generator().manual_seed(seed))
    return model
