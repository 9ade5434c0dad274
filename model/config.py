"""The shape of one model, resolved: what `GPT` is built from and what FLOPs and parameters are counted from.

The plan derives it from a recipe; nothing here is a default of the benchmark. Imports no torch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# The vocabulary is padded to a multiple of this, so that the head's GEMM has aligned rows.
VOCAB_MULTIPLE = 64
VALUE_EMBEDDING_STRIDES = {"alternate": 2, "third": 3}
# Tensor cores take fp8 operands of whole blocks of this many numbers.
FP8_MULTIPLE = 16


class InitConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Scales of the initial weights (nanochat's Run 6, with smear and backout filled; PR #807's fix)."""

    wte_std: float
    lm_head_std: float
    c_fc_scale: float  # times the 1/sqrt(width) of the other matrices
    ve_gate_max: float  # gates start uniform in [0, ve_gate_max]
    smear_gate_max: float
    smear_lambda: float
    backout_lambda: float
    resid_lambda_first: float  # per-layer scalars run linearly from the first to the last layer
    resid_lambda_last: float
    x0_lambda_first: float
    x0_lambda_last: float
    bigram_lambda: float = 0.0
    value_residual_lambda: float = 0.0


class LatentAttention(msgspec.Struct, frozen=True, kw_only=True):
    """Widths of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kv_rank: int  # of the latent that keys and values are made from
    q_rank: int  # of the one that queries are made from; 0 = from the stream itself
    rope_dim: int  # channels of a head that are rotated; the keys' are shared by all heads


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every number the forward pass depends on. Units: tokens for lengths, elements for sizes."""

    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # tokens the tokenizer knows; logits exist for these only
    vocab_padded: int
    sequence_length: int
    window_sizes: tuple[int, ...]  # keys to a query's left that it sees, a layer; >= sequence_length is full
    rope_base: float
    qk_scale: float
    softcap: float  # 0 = off
    value_embedding_layers: tuple[int, ...]
    ve_gate_channels: int
    ve_gate_range: float
    smear_channels: int  # 0 = no smear
    backout_layer: int  # -1 = no backout
    init: InitConfig
    rotary: bool = True  # False: no positions at all (NoPE)
    qk_norm: bool = True
    attention_gate_channels: int = 0  # 0 = no gate on the attention's output
    tied_embeddings: bool = False  # the head's table is the embedding's
    latent: LatentAttention | None = None  # keys and values, perhaps queries, from a narrow latent
    value_residual: bool = False  # a share of the first layer's values in every later layer's
    bigram_rows: int = 0  # rows of a table of hashed token pairs; 0 = none
    bigram_hashes: int = 1  # tables, each with a hash of its own
    bigram_masked_token: int = -1  # token that is in no pair with the one before it; -1 = none
    fp8: str = "off"  # "tensorwise" or "rowwise": products of the large matrices in training
    fp8_min_dim: int = 0  # ... with no side smaller than this
    embeddings: Literal["float32", "bfloat16"] = "float32"  # what token and value embeddings are stored in
    observes_logits: bool = False  # attention keeps each head's largest logit

    @property
    def kv_width(self) -> int:
        """Width of keys and values: all their heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention_shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) features of a layer's attention matrices, its output's last."""
        width, latent = self.width, self.latent
        if latent is None:
            return (width, width), (width, self.kv_width), (width, self.kv_width), (width, width)
        queries = ((width, latent.q_rank), (latent.q_rank, width)) if latent.q_rank else ((width, width),)
        keys = (latent.kv_rank, self.num_heads * (self.head_dim - latent.rope_dim)), (width, latent.rope_dim)
        return *queries, (width, latent.kv_rank), *keys, (latent.kv_rank, width), (width, width)

    def in_fp8(self, in_features: int, out_features: int) -> bool:
        """Whether a matrix of this shape is multiplied in fp8 in training."""
        sides = in_features, out_features
        return (
            self.fp8 != "off"
            and min(sides) >= self.fp8_min_dim
            and all(side % FP8_MULTIPLE == 0 for side in sides)
        )


def padded_vocab(vocab_size: int) -> int:
    """The vocabulary rounded up to `VOCAB_MULTIPLE`."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def window_sizes(pattern: str, depth: int, sequence_length: int, short_window: int) -> tuple[int, ...]:
    """One window a layer: `pattern` ("S" short, "L" long) tiled over the depth, the last one long."""
    sizes = [short_window if pattern[i % len(pattern)] == "S" else sequence_length for i in range(depth)]
    return (*sizes[:-1], sequence_length)


def value_embedding_layers(placement: str, depth: int) -> tuple[int, ...]:
    """Layers with a value embedding: every second ("alternate") or third one from the last on, or none."""
    if placement == "none":
        return ()
    return tuple(i for i in range(depth) if (depth - 1 - i) % VALUE_EMBEDDING_STRIDES[placement] == 0)
