"""Causal self-attention with rotary positions, QK norm, value embeddings, gates and a sliding window.

Shapes: B batch, T tokens, D width, H query heads, G key/value heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from kernels.reference import accumulation_dtype, rotate
from model.config import ModelConfig
from model.latent import LatentProjections
from model.layers import Linear, fp8_product

# Queries whose logits are looked at together.
OBSERVED_BLOCK = 256

# The first layer's values [B, T, G, K] and their share of a later layer's, a float32 tensor of no dimension.
ValueResidual = tuple[Tensor, Tensor]


def rotary_tables(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, [1, T, 1, K/2], computed in float32 and rounded once.

    Of angle 0 without positions, and in channels of latent attention that are not rotated.
    """
    rotated = config.head_dim if config.latent is None else config.latent.rope_dim
    channels = torch.arange(0, rotated, 2, dtype=torch.float32, device=device)
    frequencies = config.rope_base ** (-channels / rotated)
    still = frequencies.new_zeros((config.head_dim - rotated) // 2)
    frequencies = torch.cat((frequencies, still)) if rotated < config.head_dim else frequencies
    positions = torch.arange(config.sequence_length, dtype=torch.float32, device=device)
    angles_TK = torch.outer(positions if config.rotary else 0.0 * positions, frequencies)
    return angles_TK.cos().to(dtype)[None, :, None], angles_TK.sin().to(dtype)[None, :, None]


def largest_logits(q_THK: Tensor, k_TGK: Tensor, window: int) -> Tensor:
    """The largest logit of each query head over the keys its queries see, [H] float32."""
    T, H, K = q_THK.shape
    k_HKT = k_TGK.repeat_interleave(H // k_TGK.shape[1], dim=1).permute(1, 2, 0)
    positions = torch.arange(T, device=q_THK.device)
    blocks = []
    for start in range(0, T, OBSERVED_BLOCK):
        queries = positions[start : start + OBSERVED_BLOCK]
        first, last = max(start - window, 0), start + queries.shape[0]
        logits_HQT = q_THK[start:last].transpose(0, 1) @ k_HKT[..., first:last]
        distance_QT = queries[:, None] - positions[first:last]
        seen_QT = (distance_QT >= 0) & (distance_QT <= window)
        blocks.append(logits_HQT.masked_fill(~seen_QT, float("-inf")).amax((1, 2)))
    largest_H: Tensor = torch.stack(blocks).amax(0).float() * K**-0.5
    return largest_H


class Attention(nn.Module):
    """One layer's attention. Queries and keys are rotated, normalised and scaled by `qk_scale`.

    Attributes:
        seen_logits: each head's largest logit [H] since it was last filled with -inf, over the first row of
            every batch that gradients were recorded for; there only where the config asks for it.
    """

    seen_logits: Tensor

    def __init__(self, config: ModelConfig, layer: int, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.window, self.kernels = config, config.window_sizes[layer], kernels
        self.latent = LatentProjections(config, kernels) if config.latent is not None else None
        if self.latent is None:
            self.c_q = self._linear(config.width)
            self.c_k = self._linear(config.kv_width)
            self.c_v = self._linear(config.kv_width)
        self.c_proj = self._linear(config.width)
        gated = layer in config.value_embedding_layers
        self.ve_gate = Linear(config.ve_gate_channels, config.num_kv_heads) if gated else None
        channels = config.attention_gate_channels
        self.output_gate = Linear(channels, config.num_heads) if channels else None
        if config.observes_logits:
            self.register_buffer("seen_logits", torch.empty(config.num_heads), persistent=False)

    def forward(
        self,
        x_BTD: Tensor,
        value_embedding_BTD: Tensor | None,
        residual: ValueResidual | None,
        tables: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T, D], and the layer's own values [B, T, G, K].

        Args:
            value_embedding_BTD: [B, T, G*K] where the layer has one.
            residual: the first layer's values and their share here, where they have one.
            tables: cos and sin.
        """
        config = self.config
        q_BTHK = self.queries(x_BTD)
        k_BTGK, projected_BTGK = self.keys_and_values(x_BTD)
        v_BTGK = self.mixed_values(projected_BTGK, x_BTD, value_embedding_BTD, residual)
        q_BTHK, k_BTGK = self.positioned(q_BTHK, k_BTGK, *tables, self.kernels.rotary_qk_norm)
        if config.observes_logits and torch.is_grad_enabled():
            self._observe(q_BTHK[0].detach(), k_BTGK[0].detach())
        y_BTHK = self.kernels.attention(q_BTHK, k_BTGK, v_BTGK, self.window)
        return self.projected(y_BTHK, x_BTD), projected_BTGK

    def queries(self, x_BTD: Tensor) -> Tensor:
        """Queries before their rotation, [B, T, H, K]."""
        projected_BTD = self.c_q(x_BTD) if self.latent is None else self.latent.queries(x_BTD)
        q_BTHK: Tensor = projected_BTD.unflatten(-1, (-1, self.config.head_dim))
        return q_BTHK

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before their rotation and values before anything is mixed in, [B, T, G, K]."""
        if self.latent is not None:
            return self.latent.keys_and_values(x_BTD)
        shape = -1, self.config.head_dim
        return self.c_k(x_BTD).unflatten(-1, shape), self.c_v(x_BTD).unflatten(-1, shape)

    def mixed_values(
        self,
        v_BTGK: Tensor,
        x_BTD: Tensor,
        value_embedding_BTD: Tensor | None,
        residual: ValueResidual | None,
    ) -> Tensor:
        """The values that are attended to: the first layer's mixed in, then the gated value embedding."""
        if residual is not None:
            first_BTGK, share = residual
            wide = accumulation_dtype(v_BTGK)
            v_BTGK = torch.lerp(v_BTGK.to(wide), first_BTGK.to(wide), share.to(wide)).to(v_BTGK.dtype)
        if self.ve_gate is None or value_embedding_BTD is None:
            return v_BTGK
        gate_BTG = torch.sigmoid(self.ve_gate(x_BTD[..., : self.config.ve_gate_channels]))
        gate_BTG = gate_BTG * self.config.ve_gate_range
        return v_BTGK + gate_BTG[..., None] * value_embedding_BTD.view_as(v_BTGK)

    def _linear(self, out_features: int) -> Linear:
        width = self.config.width
        return Linear(width, out_features, fp8_product(self.config, self.kernels, width, out_features))

    def positioned(
        self, q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor, rotary_qk_norm: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys rotated, normalised where the config says so, and scaled."""
        scale = self.config.qk_scale
        if not self.config.qk_norm:
            return rotate(q_BTHK, cos, sin) * scale, rotate(k_BTGK, cos, sin) * scale
        q_BTHK, k_BTGK = rotary_qk_norm(q_BTHK, k_BTGK, cos, sin, scale)
        return q_BTHK, k_BTGK

    def projected(self, y_BTHK: Tensor, x_BTD: Tensor) -> Tensor:
        """What goes back to the residual stream: heads gated by the layer's input x, then projected."""
        if self.output_gate is not None:
            read_BTC = x_BTD[..., : self.config.attention_gate_channels]
            y_BTHK = y_BTHK * (2.0 * torch.sigmoid(self.output_gate(read_BTC)))[..., None]
        output_BTD: Tensor = self.c_proj(y_BTHK.flatten(2))
        return output_BTD

    def _observe(self, q_THK: Tensor, k_TGK: Tensor) -> None:
        seen_H = largest_logits(q_THK, k_TGK, self.window)
        self.seen_logits.copy_(torch.maximum(self.seen_logits, seen_H))
