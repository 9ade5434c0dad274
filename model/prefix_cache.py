"""Hidden states of several continuations of one text whose keys and values are computed once.

The same arithmetic as `GPT.forward`, split where a text ends and its continuations begin. A stem leaves keys
and values alone behind: of its last layer neither queries nor MLP are computed, and no head. What of a layer
looks back is what a cache must hold: keys and values; the rest is a function of one token, but for smear and
bigrams, which read one token before. Tests hold equality to the forward pass for every lever.

Shapes: B stems, N continuations of each, P tokens of a stem, C tokens of a continuation, T = P or C, D width,
H query heads, G key/value heads, R = H/G, K head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from kernels.reference import accumulation_dtype, rms_norm, rotary_qk_norm
from model.attention import rotary_tables
from model.gpt import GPT, Block


class Stems(NamedTuple):
    """What continuations need of their stems, which are padded on the right."""

    keys: tuple[Tensor, ...]  # of each layer, [B, P, G, K], rotated and normalised
    values: tuple[Tensor, ...]
    lengths_B: Tensor  # int64
    last_tokens_B: Tensor  # of a stem without tokens: any


Tables = tuple[Tensor, Tensor]


def position_tables(model: GPT, num_positions: int) -> Tables:
    """cos and sin of at least so many positions: the model's, or longer ones where it has fewer."""
    if num_positions <= model.cos.shape[1]:
        return model.cos, model.sin
    longer = msgspec.structs.replace(model.config, sequence_length=num_positions)
    return rotary_tables(longer, model.cos.device, model.cos.dtype)


@contextmanager
def positions_beyond(model: GPT, num_positions: int) -> Iterator[None]:
    """Lets `model.forward` take texts longer than it was trained on, for as long as the block lasts."""
    kept = model.cos, model.sin
    model.cos, model.sin = position_tables(model, num_positions)
    try:
        yield
    finally:
        model.cos, model.sin = kept


def _block(model: GPT, layer: int) -> Block:
    block = model.blocks[layer]
    assert isinstance(block, Block)
    return block


def _mixed(
    model: GPT, layer: int, x_BTD: Tensor, x0_BTD: Tensor, pairs_BTD: Tensor | None
) -> tuple[Tensor, Tensor]:
    scales = model.resid_lambdas[layer], model.x0_lambdas[layer]
    return _block(model, layer).mixed(x_BTD, x0_BTD, scales, model.scaled_bigrams(layer, pairs_BTD))


def read_stems(model: GPT, tokens_BP: Tensor, lengths_B: Tensor, tables: Tables) -> Stems:
    """Keys and values of every layer; tokens from a stem's length on are padding and may be any."""
    P, fused = tokens_BP.shape[1], model.kernels.rotary_qk_norm
    cos, sin = (table[:, :P] for table in tables)
    x_BPD = rms_norm(model.kernels.embedding(model.wte, tokens_BP, model.compute_dtype))
    if model.smear is not None:
        x_BPD = model.smear(x_BPD)
    x0_BPD, first_BPGK, keys, values = x_BPD, None, [], []
    pairs_BPD = None if model.bigrams is None else model.bigrams(tokens_BP, model.compute_dtype)
    for layer in range(model.config.depth):
        block = _block(model, layer)
        x_BPD, normed_BPD = _mixed(model, layer, x_BPD, x0_BPD, pairs_BPD)
        k_BPGK, v_BPGK = block.attn.keys_and_values(normed_BPD)
        residual, embedding_BPD = (
            model.value_residual(layer, first_BPGK),
            model.value_embedding(layer, tokens_BP),
        )
        first_BPGK = v_BPGK if layer == 0 else first_BPGK
        v_BPGK = block.attn.mixed_values(v_BPGK, normed_BPD, embedding_BPD, residual)
        values.append(v_BPGK)
        if layer == model.config.depth - 1:
            keys.append(block.attn.positioned(k_BPGK, k_BPGK, cos, sin, fused)[1])
            break
        q_BPHK = block.attn.queries(normed_BPD)
        q_BPHK, k_BPGK = block.attn.positioned(q_BPHK, k_BPGK, cos, sin, fused)
        keys.append(k_BPGK)
        y_BPHK = model.kernels.attention(q_BPHK, k_BPGK, v_BPGK, block.attn.window)
        x_BPD = x_BPD + block.attn.projected(y_BPHK, normed_BPD)
        x_BPD = x_BPD + block.mlp(rms_norm(x_BPD))
    last_B = tokens_BP.gather(1, (lengths_B - 1).clamp_min(0)[:, None])[:, 0]
    return Stems(tuple(keys), tuple(values), lengths_B, last_B)


def continue_stems(model: GPT, stems: Stems, tokens_BNC: Tensor, tables: Tables) -> Tensor:
    """Normalised hidden states [B, N, C, D] of each stem's continuations, padded on the right."""
    B, N, C = tokens_BNC.shape
    tokens_RC = tokens_BNC.flatten(0, 1)  # rows of their own for all but attention
    positions_BC = stems.lengths_B[:, None] + torch.arange(C, device=tokens_BNC.device)
    masks: dict[int, Tensor] = {}
    cos, sin = (_at(table, positions_BC.repeat_interleave(N, 0)) for table in tables)
    x_RCD = _embedded(model, stems, tokens_RC, N)
    x0_RCD, middle_RCD, first_RCGK = x_RCD, None, None
    pairs_RCD = _pairs(model, stems, tokens_RC, N)
    for layer in range(model.config.depth):
        block = _block(model, layer)
        x_RCD, normed_RCD = _mixed(model, layer, x_RCD, x0_RCD, pairs_RCD)
        k_RCGK, v_RCGK = block.attn.keys_and_values(normed_RCD)
        residual, embedding_RCD = (
            model.value_residual(layer, first_RCGK),
            model.value_embedding(layer, tokens_RC),
        )
        first_RCGK = v_RCGK if layer == 0 else first_RCGK
        v_RCGK = block.attn.mixed_values(v_RCGK, normed_RCD, embedding_RCD, residual)
        q_RCHK = block.attn.queries(normed_RCD)
        q_RCHK, k_RCGK = block.attn.positioned(q_RCHK, k_RCGK, cos, sin, rotary_qk_norm)
        window = block.attn.window
        if window not in masks:
            masks[window] = _hidden_keys(stems, positions_BC, window, N)
        y_RCHK = _attend(q_RCHK, (stems.keys[layer], stems.values[layer]), (k_RCGK, v_RCGK), masks[window])
        x_RCD = x_RCD + block.attn.projected(y_RCHK, normed_RCD)
        x_RCD = x_RCD + block.mlp(rms_norm(x_RCD))
        if layer == model.config.backout_layer:
            middle_RCD = x_RCD
    if middle_RCD is not None and model.backout_lambda is not None:
        x_RCD = x_RCD - model.backout_lambda.to(x_RCD.dtype) * middle_RCD
    hidden_BNCD: Tensor = rms_norm(x_RCD).unflatten(0, (B, N))
    return hidden_BNCD


def _at(table: Tensor, positions_RC: Tensor) -> Tensor:
    """Rows of a [1, T, 1, K/2] table, as [R, C, 1, K/2]; padding may stand beyond the table's end."""
    return table[0, positions_RC.clamp_max(table.shape[1] - 1)]


def _embedded(model: GPT, stems: Stems, tokens_RC: Tensor, num_continuations: int) -> Tensor:
    if model.smear is None:
        return rms_norm(model.kernels.embedding(model.wte, tokens_RC, model.compute_dtype))
    before_R1 = stems.last_tokens_B.repeat_interleave(num_continuations)[:, None]
    tokens_RE = torch.cat((before_R1, tokens_RC), dim=1)
    x_RED = rms_norm(model.kernels.embedding(model.wte, tokens_RE, model.compute_dtype))
    is_first_R = (stems.lengths_B == 0).repeat_interleave(num_continuations)
    smeared_RCD: Tensor = model.smear(x_RED)[:, 1:]
    first_R1D = torch.where(is_first_R[:, None, None], x_RED[:, 1:2], smeared_RCD[:, :1])
    return torch.cat((first_R1D, smeared_RCD[:, 1:]), dim=1)


def _pairs(model: GPT, stems: Stems, tokens_RC: Tensor, num_continuations: int) -> Tensor | None:
    """Bigrams' embeddings; a continuation's first token pairs with its stem's last, if there is one."""
    if model.bigrams is None:
        return None
    before_R1 = stems.last_tokens_B.repeat_interleave(num_continuations)[:, None]
    is_first_R = (stems.lengths_B == 0).repeat_interleave(num_continuations)
    pairs_RCD: Tensor = model.bigrams(torch.cat((before_R1, tokens_RC), dim=1), model.compute_dtype)[:, 1:]
    alone_R1D = model.bigrams(tokens_RC[:, :1], model.compute_dtype)
    first_R1D = torch.where(is_first_R[:, None, None], alone_R1D, pairs_RCD[:, :1])
    return torch.cat((first_R1D, pairs_RCD[:, 1:]), dim=1)


def _hidden_keys(stems: Stems, positions_BC: Tensor, window: int, num_continuations: int) -> Tensor:
    """Keys that a token of a continuation must not see, [B, 1, 1, N, C, P + C]: the stem's, then its own."""
    P, C = stems.keys[0].shape[1], positions_BC.shape[1]
    keys_P = torch.arange(P, device=positions_BC.device)
    is_padding_BP = keys_P >= stems.lengths_B[:, None]
    is_far_BCP = positions_BC[:, :, None] - keys_P > window
    distance_CC = torch.arange(C, device=keys_P.device)[:, None] - torch.arange(C, device=keys_P.device)
    own_BCC = ((distance_CC < 0) | (distance_CC > window)).expand(len(positions_BC), C, C)
    hidden_BCX = torch.cat((is_far_BCP | is_padding_BP[:, None], own_BCC), dim=2)
    return hidden_BCX[:, None, None, None].expand(-1, 1, 1, num_continuations, -1, -1)


def _attend(
    q_RCHK: Tensor, stem: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], hidden: Tensor
) -> Tensor:
    """Attention over the stem's keys and the continuation's own, [B*N, C, H, K].

    All continuations of a stem are one product with its keys: they are never copied for each.
    """
    B, P, G, K = stem[0].shape
    N, C = hidden.shape[3], q_RCHK.shape[1]
    q = q_RCHK.unflatten(0, (B, N)).unflatten(3, (G, -1)).permute(0, 3, 4, 1, 2, 5)  # B G R N C K
    R = q.shape[2]
    stem_k, stem_v = (x.permute(0, 2, 1, 3) for x in stem)  # B G P K
    own_k, own_v = (x.unflatten(0, (B, N)).permute(0, 3, 1, 2, 4)[:, :, None] for x in own)  # B G 1 N C K
    to_stem = (q.reshape(B, G, R * N * C, K) @ stem_k.mT).view(B, G, R, N, C, P)
    logits = torch.cat((to_stem, q @ own_k.mT), dim=-1) * K**-0.5
    logits = logits.masked_fill_(hidden, float("-inf")).to(accumulation_dtype(q_RCHK))
    p = logits.softmax(-1).to(q_RCHK.dtype)
    from_stem = (p[..., :P].reshape(B, G, R * N * C, P) @ stem_v).view(B, G, R, N, C, K)
    y = from_stem + p[..., P:] @ own_v
    y_RCHK: Tensor = y.permute(0, 3, 4, 1, 2, 5).reshape(B * N, C, G * R, K)
    return y_RCHK
