"""[model] of a recipe: the shape and the levers of the architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from bench.spec.fields import NonNegative, Positive, Strength, Table


class Bigram(Table, frozen=True, kw_only=True):
    """[model.bigram]: a table of hashed token pairs added to the residual stream before every layer.

    Source: karpathy/nanochat pull 747 (seeds its constants), `x <- resid x + x0 x0 + lambda table[hash]`.
    With several hashes, `lambda (table_1[hash_1] + table_2[hash_2] + ...)`: two pairs that share a row of one
    table rarely share one of the next. A table for each, as the Byte Latent Transformer has for its n-grams
    (arXiv 2412.09871, section 3.2.1): in one shared table every hash would add to the others' collisions.
    """

    factor: Annotated[int, Meta(ge=0, le=64, description="rows of the table a token; 0 is off")] = 0
    num_hashes: Annotated[
        int,
        Meta(ge=1, le=8, description="look-ups a pair, each with a hash and a table of its own, summed"),
    ] = 1
    lambda_init: Annotated[Strength, Meta(description="initial strength, a layer; the table starts at 0")] = (
        0.05
    )
    mask_bos: Annotated[
        bool, Meta(description="no pair across the start of a document (pull 747 has them)")
    ] = False


class LatentAttention(Table, frozen=True, kw_only=True):
    """[model.latent_attention]: keys and values of all heads made from one narrow latent a token.

    Source: multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434, section 2.1), in heads of the
    recipe's own `head_dim`: the rotated channels are of them, where the paper puts 64 beside 128.
    """

    kv_rank: Annotated[
        int, Meta(ge=0, le=8192, description="width of the latent of keys and values; 0 is off")
    ] = 0
    q_rank: Annotated[
        int, Meta(ge=0, le=8192, description="width of the queries' latent; 0 makes them of the stream")
    ] = 0
    rope_dim: Annotated[
        int,
        Meta(ge=2, le=254, multiple_of=2, description="rotated channels of a head, the keys' shared by all"),
    ] = 64


class Model(Table, frozen=True, kw_only=True):
    """[model]: the shape. width = ceil(depth x aspect_ratio / head_dim) x head_dim.

    Sources: nanochat's gpt.py for all that it has; before it rotary positions (arXiv 2104.09864), windows
    (arXiv 2004.05150), QK norm (arXiv 2010.04245), grouped and single key heads (arXiv 2305.13245 and
    1911.02150), soft-capped logits (arXiv 2408.00118), tied tables (arXiv 1608.05859); value embeddings,
    x0 scales, smear and backout from modded-nanogpt; gates on heads (arXiv 2505.06708).
    """

    depth: Annotated[int, Meta(ge=1, le=128, description="layers")] = 12
    aspect_ratio: Annotated[
        int, Meta(ge=1, le=1024, description="width a layer, before rounding to heads")
    ] = 64
    head_dim: Annotated[int, Meta(ge=8, le=256, multiple_of=8, description="width of a head")] = 128
    kv_group: Annotated[int, Meta(ge=1, le=64, description="query heads that share a key head (GQA)")] = 1
    sequence_length: Annotated[int, Meta(ge=16, le=65536, description="tokens of a row")] = 2048
    vocab_size: Annotated[int, Meta(ge=300, le=2**20, description="tokens, specials included")] = 32768
    window_pattern: Annotated[
        str, Meta(pattern=r"^[SL]{1,64}\Z", description="S short, L full, tiled; last is L")
    ] = "SSSL"
    short_window_divisor: Annotated[int, Meta(ge=1, le=64, description="short window = sequence / this")] = 4
    short_window_multiple: Annotated[
        int, Meta(ge=1, le=1024, description="... rounded up to this, in tokens")
    ] = 128
    rope_base: Annotated[float, Meta(ge=1.0, le=1e9, description="base of the rotary frequencies")] = (
        100_000.0
    )
    positions: Annotated[Literal["rotary", "none"], Meta(description="none: NoPE, arXiv 2203.16634")] = (
        "rotary"
    )
    qk_norm: Annotated[bool, Meta(description="RMS norm of each query and key head")] = True
    qk_scale: Annotated[Positive, Meta(description="factor on normalised queries and keys")] = 1.2
    softcap: Annotated[NonNegative, Meta(description="logits are capped to +- this; 0 is off")] = 15.0
    value_embeddings: Annotated[
        Literal["alternate", "third", "none"], Meta(description="layers with a value embedding")
    ] = "alternate"
    ve_gate_channels: Annotated[int, Meta(ge=1, le=1024, description="channels the gate reads")] = 12
    ve_gate_range: Annotated[Positive, Meta(description="the gate is this times a sigmoid")] = 3.0
    latent_attention: LatentAttention = LatentAttention()
    value_residual: Annotated[
        bool,
        Meta(
            description="a learned share of the first layer's values in every later layer's: v <- "
            "(1 - share) v + share v_1 of the values as projected; a value embedding is added after (arXiv "
            "2410.17897; modded-nanogpt's 110624_ShortcutsTweaks)"
        ),
    ] = False
    attention_gate_channels: Annotated[
        int, Meta(ge=0, le=1024, description="channels a head's output gate, 2 sigmoid(.), reads; 0 is off")
    ] = 0
    tied_embeddings: Annotated[
        bool, Meta(description="the head is the embedding table, trained and initialised as the head")
    ] = False
    bigram: Bigram = Bigram()
    smear: Annotated[bool, Meta(description="mix in the previous token's embedding")] = True
    smear_channels: Annotated[int, Meta(ge=1, le=1024, description="channels the smear gate reads")] = 24
    backout: Annotated[bool, Meta(description="subtract the middle layer's residual before the head")] = True
    wte_std: Annotated[Positive, Meta(description="standard deviation of initial embeddings")] = 0.8
    lm_head_std: Annotated[Positive, Meta(description="standard deviation of the initial head")] = 0.001
    c_fc_scale: Annotated[Positive, Meta(description="initial scale of the MLP's first matrix")] = 0.4
    ve_gate_init: Annotated[
        NonNegative, Meta(description="initial gate weights are uniform in [0, this]")
    ] = 0.02
    smear_gate_init: Annotated[NonNegative, Meta(description="initial smear gate weights, likewise")] = 0.02
    smear_lambda: Annotated[Strength, Meta(description="initial smear strength")] = 0.0
    value_residual_lambda: Annotated[
        Strength, Meta(description="initial share of the first layer's values, as in both sources")
    ] = 0.5
    backout_lambda: Annotated[Strength, Meta(description="initial backout strength")] = 0.2
    resid_lambda_first: Annotated[Strength, Meta(description="initial residual scale of the first layer")] = (
        1.15
    )
    resid_lambda_last: Annotated[Strength, Meta(description="... and of the last")] = 1.05
    x0_lambda_first: Annotated[
        Strength, Meta(description="initial share of the embedding added at the first layer")
    ] = 0.20
    x0_lambda_last: Annotated[Strength, Meta(description="... and at the last")] = 0.05
