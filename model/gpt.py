"""nanochat's GPT of Run 6: rotary positions, QK norm, relu^2, untied head, value embeddings, smear, backout.

Parameters are float32 masters, but for embeddings where the config says bfloat16; activations are in one
explicit compute dtype. The module is built on the meta device and filled by `model.initial` only. `forward`
ends at the hidden states: the head belongs to the loss, which never holds all logits.

Shapes: B batch, T tokens, D width, V vocabulary, L depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from kernels.reference import rms_norm
from model.attention import Attention, ValueResidual, rotary_tables
from model.config import ModelConfig
from model.flops import MLP_EXPANSION
from model.layers import Linear, fp8_product

# The embeddings of a text's pairs [B, T, D], and how much of them a layer adds.
ScaledBigrams = tuple[Tensor, Tensor]

# What the ids are multiplied by for the second bigram hash and on: odd, so that no bit of an id is lost. The
# five primes of xxHash32, then the two multipliers of MurmurHash3 (both public domain).
BIGRAM_MULTIPLIERS = (
    0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xCC9E2D51, 0x1B873593,
)  # fmt: skip


class MLP(nn.Module):
    """Two linear maps around relu squared."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        width, hidden = config.width, MLP_EXPANSION * config.width
        self.c_fc = Linear(width, hidden, fp8_product(config, kernels, width, hidden))
        self.c_proj = Linear(hidden, width, fp8_product(config, kernels, hidden, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; in fp8 product by product, else as one op."""
        if self.c_fc.training_product is not None and torch.is_grad_enabled():
            output_BTD: Tensor = self.c_proj(self.c_fc(x_BTD).relu().square())
            return output_BTD
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
        bigrams: ScaledBigrams | None = None,
        residual: ValueResidual | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T, D], and the layer's own values [B, T, G, K].

        `scales` are of x and x0, float32: in bf16 steps below 0.008 are lost.
        """
        x_BTD, normed_BTD = self.mixed(x_BTD, x0_BTD, scales, bigrams)
        attended_BTD, values_BTGK = self.attn(normed_BTD, value_embedding_BTD, residual, tables)
        x_BTD = x_BTD + attended_BTD
        x_BTD = x_BTD + self.mlp(rms_norm(x_BTD))
        return x_BTD, values_BTGK

    def mixed(
        self,
        x_BTD: Tensor,
        x0_BTD: Tensor,
        scales: tuple[Tensor, Tensor],
        bigrams: ScaledBigrams | None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with the embeddings mixed in, and the same normalised."""
        x_BTD, normed_BTD = self.kernels.mix_rms_norm(x_BTD, x0_BTD, *scales)
        if bigrams is None:
            return x_BTD, normed_BTD
        pairs_BTD, strength = bigrams
        x_BTD = x_BTD + strength * pairs_BTD
        return x_BTD, rms_norm(x_BTD)


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


class Bigrams(nn.Module):
    """Embeds hashed (previous, current) token pairs; every layer adds a learned share of that.

    They are looked up once: by the layer, each would have a gradient of the whole table. The hash of a
    further table is the op's, of ids times an odd number: that is the same xor of two products with odd
    multipliers of its own.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels, self.masked_token = kernels, config.bigram_masked_token
        shape = config.bigram_rows, config.width
        self.table = nn.Parameter(torch.empty(shape))
        self.further_tables = nn.ParameterList(
            nn.Parameter(torch.empty(shape)) for _ in range(config.bigram_hashes - 1)
        )
        self.lambdas = nn.Parameter(torch.empty(config.depth))

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Token ids [B, T] -> the sum of the tables' rows [B, T, D]; zeros at the masked token."""
        pairs_BTD = torch.zeros(*tokens_BT.shape, self.table.shape[1], dtype=dtype, device=tokens_BT.device)
        one = torch.ones((), dtype=torch.float32, device=tokens_BT.device)
        for multiplier, table in zip(
            (1, *BIGRAM_MULTIPLIERS), (self.table, *self.further_tables), strict=False
        ):
            multiplied_BT = (tokens_BT.long() * multiplier).int()  # int32 wraps around, as the hash does
            pairs_BTD = self.kernels.bigram_residual(pairs_BTD, table, multiplied_BT, one)
        if self.masked_token < 0:
            return pairs_BTD
        return pairs_BTD.masked_fill((tokens_BT == self.masked_token)[..., None], 0.0)


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
        tables = getattr(torch, config.embeddings)
        self.wte = nn.Parameter(torch.empty(config.vocab_padded, config.width, dtype=tables))
        self.value_embeds = nn.ParameterDict(
            {
                str(layer): nn.Parameter(torch.empty(config.vocab_padded, config.kv_width, dtype=tables))
                for layer in config.value_embedding_layers
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer, kernels) for layer in range(config.depth))
        tied = config.tied_embeddings
        self.lm_head = None if tied else nn.Parameter(torch.empty(config.vocab_padded, config.width))
        self.resid_lambdas = nn.Parameter(torch.empty(config.depth))
        self.x0_lambdas = nn.Parameter(torch.empty(config.depth))
        self.smear = Smear(config) if config.smear_channels else None
        self.bigrams = Bigrams(config, kernels) if config.bigram_rows else None
        self.value_lambdas = nn.Parameter(torch.empty(config.depth - 1)) if config.value_residual else None
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
        x0_BTD, middle_BTD, first_BTGK = x_BTD, None, None
        pairs_BTD = None if self.bigrams is None else self.bigrams(tokens_BT, self.compute_dtype)
        for layer, block in enumerate(self.blocks):
            scales = self.resid_lambdas[layer], self.x0_lambdas[layer]
            bigrams = self.scaled_bigrams(layer, pairs_BTD)
            values_BTD = self.value_embedding(layer, tokens_BT)
            residual = self.value_residual(layer, first_BTGK)
            x_BTD, own_BTGK = block(x_BTD, x0_BTD, scales, values_BTD, tables, bigrams, residual)
            first_BTGK = own_BTGK if layer == 0 else first_BTGK
            if layer == self.config.backout_layer:
                middle_BTD = x_BTD
        if middle_BTD is not None and self.backout_lambda is not None:
            x_BTD = x_BTD - self.backout_lambda.to(x_BTD.dtype) * middle_BTD
        return rms_norm(x_BTD)

    def scaled_bigrams(self, layer: int, pairs_BTD: Tensor | None) -> ScaledBigrams | None:
        """What of the pairs' embeddings a layer adds, where the model has them."""
        return None if self.bigrams is None or pairs_BTD is None else (pairs_BTD, self.bigrams.lambdas[layer])

    def value_residual(self, layer: int, first_BTGK: Tensor | None) -> ValueResidual | None:
        """What of the first layer's values goes into a later layer's, where the model has that."""
        if self.value_lambdas is None or first_BTGK is None:
            return None
        return first_BTGK, self.value_lambdas[layer - 1]

    def value_embedding(self, layer: int, tokens_BT: Tensor) -> Tensor | None:
        """The layer's value embedding of each token, [B, T, G*K], where it has one."""
        if str(layer) not in self.value_embeds:
            return None
        return self.kernels.embedding(self.value_embeds[str(layer)], tokens_BT, self.compute_dtype)

    def head_weight(self) -> Tensor:
        """The head's rows of the real vocabulary, [V, D] float32."""
        table = self.wte if self.lm_head is None else self.lm_head
        # Not cut where nothing is to be cut off: the gradient of a slice is a copy of the table's size.
        return table if len(table) == self.config.vocab_size else table[: self.config.vocab_size]

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Soft-capped logits [B, T, V] in float32, for probes and sampling; training never calls it."""
        logits_BTV = (hidden_BTD @ self.head_weight().to(hidden_BTD.dtype).T).float()
        softcap = self.config.softcap
        return softcap * torch.tanh(logits_BTV / softcap) if softcap else logits_BTV
