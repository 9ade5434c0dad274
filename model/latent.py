"""Multi-head latent attention's projections (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads are made from one narrow latent a token, normalised; so are queries, from a
latent of their own, where `q_rank` is given. Positions do not go through the latent: `rope_dim` channels of a
key come from the stream itself, are rotated, and are the same for all heads. A head keeps its width, so these
are channels of it and not channels more (in the paper 64 beside 128): the attention op and its scale,
1/sqrt(K), stay what they are. Where the QK norm is on it is of whole heads, rotated channels included, as
without a latent. The rotated channels are the first of both halves of a head, and the tables' angle is 0 in
the others: the rotary op needs to know nothing of this.

Matrices that the paper's code stacks (the latent's and the rotated key's; the keys' and the values') are
apart here: each is orthogonalised by itself.

Shapes: B batch, T tokens, D width, H heads, K head dim, R rotated channels, C rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.dispatch import Kernels
from kernels.reference import rms_norm
from model.config import ModelConfig
from model.layers import Linear, fp8_product


class LatentProjections(nn.Module):
    """Queries, keys and values of one layer."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        assert config.latent is not None
        assert config.num_kv_heads == config.num_heads, "every head has keys of its own"
        self.config, self.kernels, self.rope_dim = config, kernels, config.latent.rope_dim
        width, kv_rank, q_rank = config.width, config.latent.kv_rank, config.latent.q_rank
        self.q_down = self._linear(width, q_rank) if q_rank else None
        self.q_up = self._linear(q_rank or width, width)
        self.kv_down = self._linear(width, kv_rank)
        self.k_up = self._linear(kv_rank, config.num_heads * (config.head_dim - self.rope_dim))
        self.k_rotated = self._linear(width, self.rope_dim)
        self.v_up = self._linear(kv_rank, width)

    def _linear(self, in_features: int, out_features: int) -> Linear:
        product = fp8_product(self.config, self.kernels, in_features, out_features)
        return Linear(in_features, out_features, product)

    def queries(self, x_BTD: Tensor) -> Tensor:
        """Of all heads, before their rotation, [B, T, H*K]."""
        read_BTC = x_BTD if self.q_down is None else rms_norm(self.q_down(x_BTD))
        q_BTD: Tensor = self.q_up(read_BTC)
        return q_BTD

    def keys_and_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before their rotation, and values, [B, T, H, K]."""
        latent_BTC = rms_norm(self.kv_down(x_BTD))
        shape = self.config.num_heads, -1
        rotated_BTHR = self.k_rotated(x_BTD)[:, :, None].expand(-1, -1, self.config.num_heads, -1)
        still_BTHS = self.k_up(latent_BTC).unflatten(-1, shape)
        halves = zip(rotated_BTHR.chunk(2, -1), still_BTHS.chunk(2, -1), strict=True)
        k_BTHK = torch.cat([part for half in halves for part in half], dim=-1)
        return k_BTHK, self.v_up(latent_BTC).unflatten(-1, shape)

    def matrices(self) -> list[Linear]:
        """In the order in which they are initialised."""
        matrices = self.q_down, self.q_up, self.kv_down, self.k_up, self.k_rotated, self.v_up
        return [matrix for matrix in matrices if matrix is not None]
