"""Causal self-attention with rotary positions, QK norm, value embeddings and a sliding window.

Shapes: B batch, T tokens, D width, H query heads, G key/value heads, K head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from model.config import ModelConfig
from model.layers import Linear


def rotary_tables(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, [1, T, 1, K/2], computed in float32 and rounded once."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = config.rope_base ** (-channels / config.head_dim)
    positions = torch.arange(config.sequence_length, dtype=torch.float32, device=device)
    angles_TK = torch.outer(positions, frequencies)
    return angles_TK.cos().to(dtype)[None, :, None], angles_TK.sin().to(dtype)[None, :, None]


class Attention(nn.Module):
    """One layer's attention. Queries and keys are rotated, normalised and scaled by `qk_scale`."""

    def __init__(self, config: ModelConfig, layer: int, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.window, self.kernels = config, config.window_sizes[layer], kernels
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, config.kv_width)
        self.c_v = Linear(config.width, config.kv_width)
        self.c_proj = Linear(config.width, config.width)
        gated = layer in config.value_embedding_layers
        self.ve_gate = Linear(config.ve_gate_channels, config.num_kv_heads) if gated else None

    def forward(self, x_BTD: Tensor, value_embedding_BTD: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; `value_embedding_BTD` is [B, T, G*K] where the layer has one."""
        B, T, _ = x_BTD.shape
        config = self.config
        q_BTHK = self.c_q(x_BTD).view(B, T, config.num_heads, config.head_dim)
        k_BTGK = self.c_k(x_BTD).view(B, T, config.num_kv_heads, config.head_dim)
        v_BTGK = self.c_v(x_BTD).view(B, T, config.num_kv_heads, config.head_dim)
        if self.ve_gate is not None and value_embedding_BTD is not None:
            gate_BTG = (
                torch.sigmoid(self.ve_gate(x_BTD[..., : config.ve_gate_channels])) * config.ve_gate_range
            )
            v_BTGK = v_BTGK + gate_BTG[..., None] * value_embedding_BTD.view_as(v_BTGK)
        q_BTHK, k_BTGK = self.kernels.rotary_qk_norm(q_BTHK, k_BTGK, cos, sin, config.qk_scale)
        y_BTHK = self.kernels.attention(q_BTHK, k_BTGK, v_BTGK, self.window)
        output_BTD: Tensor = self.c_proj(y_BTHK.reshape(B, T, -1))
        return output_BTD
