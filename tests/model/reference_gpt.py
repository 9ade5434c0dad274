"""Run 6's forward pass stated once more in float64: one row at a time, one head at a time, all logits whole.

It shares no code with the model: weights come as a dictionary by parameter name, constants as the config.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig

EPS = 2.0**-23  # of every norm: float32's, in all dtypes


def unit_rms(x: Tensor) -> Tensor:
    """Each vector of the last dimension divided by its root mean square."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


def turned(x_TK: Tensor, base: float) -> Tensor:
    """Channel pairs (i, i + K/2) as complex numbers, turned by minus position / base^(2i/K)."""
    tokens, channels = x_TK.shape
    half = channels // 2
    speed = torch.tensor([base ** (-2.0 * i / channels) for i in range(half)], dtype=torch.float64)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * speed
    z = torch.complex(x_TK[:, :half], x_TK[:, half:]) * torch.polar(torch.ones_like(angle), -angle)
    return torch.cat((z.real, z.imag), dim=1)


def one_head(q_TK: Tensor, k_TK: Tensor, v_TK: Tensor, window: int) -> Tensor:
    """Each query's mean of the values at most `window` tokens back, weighted by softmax(q.k/sqrt(K))."""
    rows = []
    for t in range(q_TK.shape[0]):
        first = max(0, t - window)
        score = k_TK[first : t + 1] @ q_TK[t] / math.sqrt(q_TK.shape[1])
        rows.append(torch.softmax(score, 0) @ v_TK[first : t + 1])
    return torch.stack(rows)


# A table's hash has both multipliers times this: 1, xxHash32's primes, MurmurHash3's c1 and c2.
FACTORS = (1, 2654435761, 2246822519, 3266489917, 668265263, 374761393, 3432918353, 461845907)


def pair_rows(ids: Tensor, rows: int, number: int = 0) -> list[int]:
    """A bigram table's row of each token with the one before: 32-bit products, xor, floor-mod."""
    found, factor = [rows - 1], FACTORS[number]
    for before, now in zip(ids.tolist(), ids.tolist()[1:], strict=False):
        mixed = (36313 * factor * now) % 2**32 ^ (27191 * factor * before) % 2**32
        found.append((mixed - 2**32 if mixed >= 2**31 else mixed) % (rows - 1))
    return found


def of_latents(
    weights: dict[str, Tensor], config: ModelConfig, name: str, x_TD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads: DeepSeek-V2's equations 9 to 19, a head's keys one by one."""

    def times(kind: str, of: Tensor) -> Tensor:
        return of @ weights[f"{name}.{kind}.weight"].T

    assert config.latent is not None
    latent = unit_rms(times("kv_down", x_TD))
    still, shared = times("k_up", latent), times("k_rotated", x_TD)
    near, size = config.latent.rope_dim // 2, config.head_dim - config.latent.rope_dim
    keys = []
    for head in range(config.num_heads):
        own = still[:, head * size : (head + 1) * size]
        keys += [shared[:, :near], own[:, : size // 2], shared[:, near:], own[:, size // 2 :]]
    read = unit_rms(times("q_down", x_TD)) if config.latent.q_rank else x_TD
    return times("q_up", read), torch.cat(keys, dim=1), times("v_up", latent)


def placed(x_TK: Tensor, config: ModelConfig) -> Tensor:
    """A head's queries or keys at their positions; with a latent, the first channels of both halves only."""
    if not config.rotary:
        return x_TK
    if config.latent is None:
        return turned(x_TK, config.rope_base)
    near, middle = config.latent.rope_dim // 2, config.head_dim // 2
    both = torch.cat((x_TK[:, :near], x_TK[:, middle : middle + near]), dim=1)
    first, second = turned(both, config.rope_base).chunk(2, dim=1)
    return torch.cat((first, x_TK[:, near:middle], second, x_TK[:, middle + near :]), dim=1)


def attention(
    weights: dict[str, Tensor],
    config: ModelConfig,
    layer: int,
    x_TD: Tensor,
    ids: Tensor,
    firsts: list[Tensor],
) -> Tensor:
    """The layer's attention of one row; `firsts` are the values of every layer before, the first's first."""
    name, size = f"blocks.{layer}.attn", config.head_dim
    if config.latent is None:
        q_all, k_all, v_all = (x_TD @ weights[f"{name}.c_{kind}.weight"].T for kind in "qkv")
    else:
        q_all, k_all, v_all = of_latents(weights, config, f"{name}.latent", x_TD)
    firsts.append(v_all)
    if config.value_residual and layer > 0:
        share = weights["value_lambdas"][layer - 1]
        v_all = (1.0 - share) * v_all + share * firsts[0]
    heads = []
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)
        mine, theirs = slice(head * size, (head + 1) * size), slice(shared * size, (shared + 1) * size)
        v = v_all[:, theirs]
        if layer in config.value_embedding_layers:
            openness = torch.sigmoid(
                x_TD[:, : config.ve_gate_channels] @ weights[f"{name}.ve_gate.weight"][shared]
            )
            table = weights[f"value_embeds.{layer}"]
            v = v + config.ve_gate_range * openness[:, None] * table[ids][:, theirs]
        q, k = (placed(x, config) for x in (q_all[:, mine], k_all[:, theirs]))
        q, k = (config.qk_scale * (unit_rms(x) if config.qk_norm else x) for x in (q, k))
        y = one_head(q, k, v, config.window_sizes[layer])
        if config.attention_gate_channels:
            gate = weights[f"{name}.output_gate.weight"][head]
            y = y * 2.0 * torch.sigmoid(x_TD[:, : config.attention_gate_channels] @ gate)[:, None]
        heads.append(y)
    return torch.cat(heads, dim=1) @ weights[f"{name}.c_proj.weight"].T


def hidden_states(weights: dict[str, Tensor], config: ModelConfig, ids: Tensor) -> Tensor:
    """One row of token ids [T] -> [T, D], before the head."""
    x = unit_rms(weights["wte"][ids])
    if config.smear_channels:
        gate = (
            torch.sigmoid(x[:, : config.smear_channels] @ weights["smear.gate.weight"][0])
            * weights["smear.scale"]
        )
        x = torch.stack([x[0], *(x[t] + gate[t] * x[t - 1] for t in range(1, len(ids)))])
    start, middle = x, None
    firsts: list[Tensor] = []
    for layer in range(config.depth):
        x = weights["resid_lambdas"][layer] * x + weights["x0_lambdas"][layer] * start
        if config.bigram_rows:
            pairs = weights["bigrams.table"][pair_rows(ids, config.bigram_rows)]
            for number in range(1, config.bigram_hashes):
                further = weights[f"bigrams.further_tables.{number - 1}"]
                pairs = pairs + further[pair_rows(ids, config.bigram_rows, number)]
            counted = (ids != config.bigram_masked_token)[:, None]
            x = x + weights["bigrams.lambdas"][layer] * counted * pairs
        x = x + attention(weights, config, layer, unit_rms(x), ids, firsts)
        up = unit_rms(x) @ weights[f"blocks.{layer}.mlp.c_fc.weight"].T
        x = x + torch.clamp(up, min=0.0) ** 2 @ weights[f"blocks.{layer}.mlp.c_proj.weight"].T
        if layer == config.backout_layer:
            middle = x
    if middle is not None:
        x = x - weights["backout_lambda"] * middle
    return unit_rms(x)


def loss(weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean nats of the counted targets."""
    nats = []
    for ids, wanted in zip(tokens, targets, strict=True):
        head = weights["wte" if config.tied_embeddings else "lm_head"][: config.vocab_size]
        logits = hidden_states(weights, config, ids) @ head.T
        if config.softcap:
            logits = config.softcap * torch.tanh(logits / config.softcap)
        surprise = torch.logsumexp(logits, 1)
        nats += [surprise[t] - logits[t, y] for t, y in enumerate(wanted.tolist()) if y >= 0]
    return torch.stack(nats).mean()
