"""Causal sliding-window attention by blocks of queries, and torch's own, with a window on CUDA.

`sliding_window_attention` lets each block of queries meet only the keys it may see: work grows with T x
(window + block) instead of T x T, memory with T alone, for the backward computes the probabilities again
and only q, k, v and the output live from forward to backward. The mask is what the product is added to, and
softmax and its derivative are ATen's fused ones, over a block that fits a CPU's cache. The op is opaque:
traced, its unrolled blocks took Inductor minutes to compile and were slower than these kernels are eagerly.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim, S = B*G, R query heads of a key
head, Q queries of a block times R, W keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran
from kernels.reference import accumulation_dtype

BLOCK = 128
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WIDE_DTYPES = (torch.float64, torch.float32)
_HALF_DTYPES = (torch.bfloat16, torch.float16)


def require_attention_arguments(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int, dtypes: tuple[torch.dtype, ...] = _DTYPES
) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these can be attended over."""
    require_dtype("q_BTHK", q_BTHK, dtypes)
    require_shape("q_BTHK", q_BTHK, (None, None, None, None))
    B, T, H, K = q_BTHK.shape
    require(T > 0 and K > 0, "q_BTHK", "no tokens or no head dimension")
    require_shape("k_BTGK", k_BTGK, (B, T, None, K))
    require_shape("v_BTGK", v_BTGK, tuple(k_BTGK.shape))
    G = k_BTGK.shape[2]
    require(G > 0 and H % G == 0, "k_BTGK", f"{G} heads do not divide the {H} query heads")
    for name, tensor in (("k_BTGK", k_BTGK), ("v_BTGK", v_BTGK)):
        require_dtype(name, tensor, (q_BTHK.dtype,))
        require_device(name, tensor, q_BTHK)
    require(window >= 0, "window", f"{window}, expected 0 or more keys to the left")


def _blocks(num_tokens: int, window: int, block: int, repeats: int, like: Tensor) -> Iterator[Any]:
    """(queries, keys that any of them sees, bias [Q, W]: -inf where a key is out of sight) of each block."""
    made: dict[tuple[int, int], Tensor] = {}
    for start in range(0, num_tokens, block):
        first, last = max(0, start - window), min(start + block, num_tokens)
        shape = (start - first, last - start)  # blocks of one shape have one mask
        if shape not in made:
            queries_Q1 = torch.arange(start, last, device=like.device)[:, None]
            keys_1W = torch.arange(first, last, device=like.device)[None, :]
            hidden_QW = (keys_1W > queries_Q1) | (keys_1W < queries_Q1 - window)
            bias_QW = torch.zeros(hidden_QW.shape, dtype=like.dtype, device=like.device)
            made[shape] = bias_QW.masked_fill(hidden_QW, float("-inf")).repeat(repeats, 1)
        yield slice(start, last), slice(first, last), made[shape]


def _by_key_head(x_BTHK: Tensor, num_key_heads: int) -> Tensor:
    """[B, T, H, K] -> [S, R, T, K], contiguous: what the products read row by row."""
    B, T, H, K = x_BTHK.shape
    x_BGRTK = x_BTHK.reshape(B, T, num_key_heads, H // num_key_heads, K).permute(0, 2, 3, 1, 4)
    return x_BGRTK.reshape(B * num_key_heads, H // num_key_heads, T, K)


def _by_token(x_STK: Tensor, like_BTHK: Tensor) -> Tensor:
    """Any [.., T, K] of like's number of elements -> contiguous [B, T, H, K] in like's dtype."""
    B, T, H, K = like_BTHK.shape
    return x_STK.view(B, H, T, K).transpose(1, 2).to(like_BTHK.dtype).contiguous()


def _add_product(sum_SWK: Tensor, a_SWQ: Tensor, b_SQK: Tensor) -> None:
    """sum += a @ b; without a temporary where they share a dtype."""
    if sum_SWK.dtype == a_SWQ.dtype:
        sum_SWK.baddbmm_(a_SWQ, b_SQK)
    else:
        sum_SWK += a_SWQ @ b_SQK


@library.custom_op("speedrun::blocked_attention", mutates_args=())
def _attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int, block: int) -> Tensor:
    ran("attention", "blocked")
    T, K, G = q_BTHK.shape[1], q_BTHK.shape[3], k_BTGK.shape[2]
    q_SRTK = _by_key_head(q_BTHK, G)
    k_STK, v_STK = _by_key_head(k_BTGK, G)[:, 0], _by_key_head(v_BTGK, G)[:, 0]
    outputs = q_SRTK.new_empty(q_SRTK.shape)
    for queries, keys, bias_QW in _blocks(T, window, block, q_SRTK.shape[1], q_SRTK):
        q_SQK = q_SRTK[:, :, queries].flatten(1, 2)
        logits_SQW = torch.baddbmm(bias_QW, q_SQK, k_STK[:, keys].mT, alpha=K**-0.5)
        y_SQK = logits_SQW.softmax(-1) @ v_STK[:, keys]
        outputs[:, :, queries] = y_SQK.view(outputs[:, :, queries].shape)
    return _by_token(outputs, q_BTHK)


@_attention.register_fake
def _(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int, block: int) -> Tensor:
    return q_BTHK.new_empty(q_BTHK.shape)


@library.custom_op("speedrun::blocked_attention_gradient", mutates_args=())
def _gradients(
    grad_BTHK: Tensor,
    y_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    window: int,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    T, K, G = q_BTHK.shape[1], q_BTHK.shape[3], k_BTGK.shape[2]
    q_SRTK, grad_SRTK = _by_key_head(q_BTHK, G), _by_key_head(grad_BTHK, G)
    k_STK, v_STK = _by_key_head(k_BTGK, G)[:, 0], _by_key_head(v_BTGK, G)[:, 0]
    repeats, scale, dtype = q_SRTK.shape[1], K**-0.5, accumulation_dtype(q_BTHK)
    # do . o, the mean that softmax's derivative takes out of a row of do . v. Taken out before the product is
    # rounded, it leaves to `_softmax_backward_data` what the rounding of the probabilities did to their sum.
    row_BTH1 = (grad_BTHK.to(dtype) * y_BTHK.to(dtype)).sum(-1, keepdim=True)
    row_SRT1 = _by_key_head(row_BTH1.to(y_BTHK.dtype), G)
    grad_q = q_SRTK.new_empty(q_SRTK.shape)
    # A key meets several blocks: its gradient is summed in float32 at least.
    grad_k, grad_v = (torch.zeros_like(k_STK, dtype=dtype) for _ in range(2))
    for queries, keys, bias_QW in _blocks(T, window, block, repeats, q_SRTK):
        q_SQK, grad_SQK = q_SRTK[:, :, queries].flatten(1, 2), grad_SRTK[:, :, queries].flatten(1, 2)
        p_SQW = torch.baddbmm(bias_QW, q_SQK, k_STK[:, keys].mT, alpha=scale).softmax(-1)
        grad_p_SQW = torch.baddbmm(-row_SRT1[:, :, queries].flatten(1, 2), grad_SQK, v_STK[:, keys].mT)
        grad_logits_SQW = torch.ops.aten._softmax_backward_data(grad_p_SQW, p_SQW, -1, p_SQW.dtype)
        # beta=0 ignores the first argument: only alpha is wanted, before the product is rounded.
        grad_q_SQK = torch.baddbmm(q_SQK, grad_logits_SQW, k_STK[:, keys], beta=0, alpha=scale)
        grad_q[:, :, queries] = grad_q_SQK.view(grad_q[:, :, queries].shape)
        _add_product(grad_k[:, keys], grad_logits_SQW.mT, q_SQK)
        _add_product(grad_v[:, keys], p_SQW.mT, grad_SQK)
    return (
        _by_token(grad_q, q_BTHK),
        _by_token(grad_k.mul_(scale), k_BTGK),
        _by_token(grad_v, v_BTGK),
    )


@_gradients.register_fake
def _(
    grad_BTHK: Tensor,
    y_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    window: int,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), k_BTGK.new_empty(k_BTGK.shape), v_BTGK.new_empty(v_BTGK.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q_BTHK, k_BTGK, v_BTGK, ctx.window, ctx.block = inputs
    ctx.save_for_backward(output, q_BTHK, k_BTGK, v_BTGK)


def _backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(grad_BTHK, *ctx.saved_tensors, ctx.window, ctx.block), None, None)


_attention.register_autograd(_backward, setup_context=_setup_context)


def sliding_window_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int, block: int = BLOCK
) -> Tensor:
    """Attention over a query itself and `window` keys to its left; reference: the function of the same name.

    Args:
        window: T - 1 or more is full causal attention.
        block: queries of a block; a block meets at most `window + block` keys.
    """
    require_attention_arguments(q_BTHK, k_BTGK, v_BTGK, window)
    require(block > 0, "block", f"{block}, expected 1 or more")
    y_BTHK: Tensor = _attention(q_BTHK, k_BTGK, v_BTGK, window, block)
    return y_BTHK


def _for_each_query_head(q_BTHK: Tensor, *of_keys_BTGK: Tensor) -> list[Tensor]:
    repeats = q_BTHK.shape[2] // of_keys_BTGK[0].shape[2]
    return [x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in of_keys_BTGK]


def sdpa_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    """torch's causal attention in float32 or float64 where the window covers the row, in blocks elsewhere."""
    require_attention_arguments(q_BTHK, k_BTGK, v_BTGK, window, _WIDE_DTYPES)
    ran("attention", "sdpa")
    if window >= q_BTHK.shape[1] - 1:
        return _full(q_BTHK, k_BTGK, v_BTGK)
    return sliding_window_attention(q_BTHK, k_BTGK, v_BTGK, window)


@lru_cache(maxsize=16)
def _cached_row_starts(num_rows: int, num_tokens: int, device: torch.device) -> Tensor:
    # Made outside inference mode even if an evaluation asks first: the training step saves it for backward.
    with torch.inference_mode(False):
        return _row_starts(num_rows, num_tokens, device)


def _row_starts(num_rows: int, num_tokens: int, device: torch.device) -> Tensor:
    """First token of every row of a flattened batch, and the end: int32 [B + 1]."""
    return torch.arange(num_rows + 1, dtype=torch.int32, device=device) * num_tokens


def _full(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
    if q_BTHK.device.type != "cpu":  # of CUDA's kernels not all know groups
        k_BTGK, v_BTGK = _for_each_query_head(q_BTHK, k_BTGK, v_BTGK)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped).transpose(1, 2)


def _windowed(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    B, T = q_BTHK.shape[:2]
    # Dynamo sees through no cache; a compiled graph makes the starts once for all layers.
    row_starts = _row_starts if torch.compiler.is_compiling() else _cached_row_starts
    starts = row_starts(B, T, q_BTHK.device)
    q, k, v = (x.flatten(0, 1) for x in (q_BTHK, *_for_each_query_head(q_BTHK, k_BTGK, v_BTGK)))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # all that the kernel demands
    from torch.nn.attention import varlen  # loads the compiler, which nothing but this needs at import

    # By keyword: torch 2.13 has options that 2.11 lacks, `enable_gqa` among them.
    y = varlen.varlen_attn(
        query=q, key=k, value=v, cu_seq_q=starts, cu_seq_k=starts, max_q=T, max_k=T, window_size=(window, 0)
    )
    assert isinstance(y, Tensor)  # a pair only where the normalisers are asked for
    return y.view(q_BTHK.shape)


def varlen_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    """torch's flash attention with a window, on CUDA in bf16 or float16; SDPA where it covers the row.

    Raises:
        RuntimeError: on another device than CUDA.
    """
    require_attention_arguments(q_BTHK, k_BTGK, v_BTGK, window, _HALF_DTYPES)
    require(
        q_BTHK.shape[3] % 8 == 0 and q_BTHK.shape[3] <= 256, "q_BTHK", "head dimension not 8, 16, ..., 256"
    )
    if q_BTHK.device.type != "cuda":
        raise RuntimeError(f"q_BTHK: on {q_BTHK.device}; torch's windowed flash attention runs on CUDA only")
    ran("attention", "varlen")
    if window >= q_BTHK.shape[1] - 1:
        return _full(q_BTHK, k_BTGK, v_BTGK)
    return _windowed(q_BTHK, k_BTGK, v_BTGK, window)
