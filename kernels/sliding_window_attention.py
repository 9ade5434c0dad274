"""Causal sliding-window attention by blocks of queries: each block meets only the keys it may see.

Memory and work grow with T x (window + block) instead of T x T. Plain torch operations that Inductor traces
and fuses, forward and backward: two batched GEMMs forward, four backward, which is where a CPU with bf16
matrix units is fast. The
backward keeps the probabilities in the compute dtype only; left to autograd they stay in float32 too.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim, Q queries of a block, W keys of a
block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.reference import accumulation_dtype


def _key_range(start: int, end: int, window: int) -> tuple[int, int]:
    return max(0, start - window), end


def _probabilities(q_BHQK: Tensor, k_BHWK: Tensor, start: int, first_key: int, window: int) -> Tensor:
    """softmax(q k^T / sqrt(K)) of the visible keys, [B, H, Q, W] in the compute dtype."""
    queries_Q = torch.arange(start, start + q_BHQK.shape[2], device=q_BHQK.device)[:, None]
    keys_W = torch.arange(first_key, first_key + k_BHWK.shape[2], device=q_BHQK.device)[None, :]
    invisible_QW = (keys_W > queries_Q) | (keys_W < queries_Q - window)
    scale = q_BHQK.shape[-1] ** -0.5
    logits_BHQW = (q_BHQK @ k_BHWK.transpose(-1, -2)).to(accumulation_dtype(q_BHQK)) * scale
    probabilities_BHQW: Tensor = logits_BHQW.masked_fill(invisible_QW, float("-inf")).softmax(-1)
    return probabilities_BHQW.to(q_BHQK.dtype)


class _BlockedAttention(torch.autograd.Function):
    """Heads already repeated for their groups; all of [B, H, T, K]."""

    @staticmethod
    def forward(ctx, q, k, v, window: int, block: int):  # type: ignore[no-untyped-def]
        outputs, probabilities = [], []
        for start in range(0, q.shape[2], block):
            end = min(start + block, q.shape[2])
            first, last = _key_range(start, end, window)
            p_BHQW = _probabilities(q[:, :, start:end], k[:, :, first:last], start, first, window)
            outputs.append(p_BHQW @ v[:, :, first:last])
            probabilities.append(p_BHQW)
        output = torch.cat(outputs, dim=2)
        ctx.window, ctx.block = window, block
        ctx.save_for_backward(q, k, v, output, *probabilities)
        return output

    @staticmethod
    def backward(ctx, grad_BHTK):  # type: ignore[no-untyped-def]
        q, k, v, output, *probabilities = ctx.saved_tensors
        dtype, scale = accumulation_dtype(q), q.shape[-1] ** -0.5
        # sum_j p_ij (do_i . v_j) = do_i . o_i: the softmax backward's row term, without the T x W product.
        row_BHT1 = (grad_BHTK.to(dtype) * output.to(dtype)).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
        for i, start in enumerate(range(0, q.shape[2], ctx.block)):
            end = min(start + ctx.block, q.shape[2])
            first, last = _key_range(start, end, ctx.window)
            p_BHQW, grad_BHQK = probabilities[i], grad_BHTK[:, :, start:end]
            grad_p_BHQW = grad_BHQK @ v[:, :, first:last].transpose(-1, -2)
            grad_logits = p_BHQW.to(dtype) * (grad_p_BHQW.to(dtype) - row_BHT1[:, :, start:end]) * scale
            grad_logits = grad_logits.to(q.dtype)
            grad_q.append(grad_logits @ k[:, :, first:last])
            grad_k[:, :, first:last] += grad_logits.transpose(-1, -2) @ q[:, :, start:end]
            grad_v[:, :, first:last] += p_BHQW.transpose(-1, -2) @ grad_BHQK
        return torch.cat(grad_q, dim=2), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def sliding_window_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int, block: int = 256
) -> Tensor:
    """Attention over a query itself and `window` keys to its left; reference: the function of the same name.

    Args:
        window: T or more is full causal attention.
        block: queries of a block; a block meets at most `window + block` keys.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    output: Tensor = _BlockedAttention.apply(q, k, v, window, block)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)
