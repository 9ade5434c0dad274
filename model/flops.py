"""Parameters by group and training FLOPs a token. Imports no torch; equal to the built model's in a test."""

from __future__ import annotations

from model.config import ModelConfig

MLP_EXPANSION = 4


def parameters(config: ModelConfig) -> dict[str, int]:
    """Number of parameters a group; groups are the optimizer's."""
    width, kv_width, vocab = config.width, config.kv_width, config.vocab_padded
    attention = sum(rows * columns for rows, columns in config.attention_shapes)
    mlp = 2 * MLP_EXPANSION * width * width
    gates = len(config.value_embedding_layers) * config.num_kv_heads * config.ve_gate_channels
    gates += config.depth * config.num_heads * config.attention_gate_channels
    smear = config.smear_channels + 1 if config.smear_channels else 0
    bigram = {"bigram": config.bigram_hashes * config.bigram_rows * width, "bigram_lambda": config.depth}
    return {
        "wte": 0 if config.tied_embeddings else vocab * width,
        "value_embeds": len(config.value_embedding_layers) * vocab * kv_width,
        "lm_head": vocab * width,
        "matrices": config.depth * (attention + mlp) + gates,
        "scalars": 2 * config.depth + smear + (config.backout_layer >= 0),
        **({"value_residual": config.depth - 1} if config.value_residual else {}),
        **(bigram if config.bigram_rows else {}),
    }


def bfloat16_parameters(config: ModelConfig) -> int:
    """Parameters stored in bfloat16, their gradients and moments with them; all others are in float32."""
    groups = parameters(config)
    return 0 if config.embeddings == "float32" else groups["wte"] + groups["value_embeds"]


def scaling_parameters(config: ModelConfig) -> int:
    """The N of tokens = ratio x N: transformer matrices and head (nanochat dev/LOG.md, 27 January 2026)."""
    groups = parameters(config)
    return groups["matrices"] + groups["lm_head"]


def matmul_parameters(config: ModelConfig) -> int:
    """Parameters that multiply the token stream; embeddings are look-ups and scalars are free."""
    return scaling_parameters(config) + config.smear_channels


def fp8_share(config: ModelConfig) -> float:
    """Share of the FLOPs of products with parameters that training spends in fp8."""
    width, hidden = config.width, MLP_EXPANSION * config.width
    shapes = [*config.attention_shapes, (width, hidden), (hidden, width)]
    layer = sum(rows * columns for rows, columns in shapes if config.in_fp8(rows, columns))
    return config.depth * layer / matmul_parameters(config)


def attention_flops_per_token(config: ModelConfig) -> int:
    """Forward and backward of q k^T and p v: 12 x heads x head_dim x keys (PaLM, arXiv 2204.02311, app. B).

    Keys are the window without the causal half, as nanochat and PaLM count, so MFU compares with theirs.
    """
    keys = sum(min(window, config.sequence_length) for window in config.window_sizes)
    return 12 * config.num_heads * config.head_dim * keys


def flops_per_token(config: ModelConfig) -> int:
    """Training FLOPs a token: 6 a matmul parameter (2 forward, 4 backward) plus attention."""
    return 6 * matmul_parameters(config) + attention_flops_per_token(config)
