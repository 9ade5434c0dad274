"""Rotation by position, norm of each head and the constant factor, of queries and keys in one launch.

A program holds the tables' rows of its tokens and goes through their heads, so the tables are read once. Kept
for the backward are the outputs, which attention keeps for its own, and each head's 1/rms (4 bytes beside the
2 K of the head): from them it has the normed head, so it reads output and upstream gradient and writes the
gradient. Keeping the inputs instead would move as many bytes less those 4, and hold q and k in memory twice.

Shapes: B batch, T tokens of a row, N = B*T, H query heads, G key heads, K head dim, C = K/2 pairs of
channels; a program's tile is BLOCK_N x BLOCK_C.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran
from kernels.reference import RMS_NORM_EPS
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.float32, torch.bfloat16)
LARGEST_HEAD_DIM = 256

# Pairs of channels that a program holds, by the lowest architecture it is for; 0 is the interpreter. 256 a
# warp are 8 a thread: one 16-byte load of bf16 for each half of a head.
_TILES = {0: 2048, 80: 1024}
_ELEMENTS_PER_WARP = 256


def _config(arch: int, head_dim: int) -> Config:
    elements = _TILES[max(known for known in _TILES if known <= arch)]
    block_C = triton.next_power_of_2(head_dim // 2)
    return Config({"BLOCK_N": elements // block_C, "BLOCK_C": block_C}, elements // _ELEMENTS_PER_WARP)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr,
    num_tokens, row_tokens, q_heads, k_heads, q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head,
    k_channel, cos_token, cos_channel, sin_token, sin_channel, scale, eps,
    HALF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tokens_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels_1C = tl.arange(0, BLOCK_C).to(tl.int64)[None, :]
    inside_N = tokens_N < num_tokens
    mask_NC = inside_N[:, None] & (channels_1C < HALF)
    batch_N1 = (tokens_N // row_tokens).to(tl.int64)[:, None]
    position_N1 = (tokens_N % row_tokens).to(tl.int64)[:, None]
    cos_pointers = cos_ptr + position_N1 * cos_token + channels_1C * cos_channel
    sin_pointers = sin_ptr + position_N1 * sin_token + channels_1C * sin_channel
    cos_NC = tl.load(cos_pointers, mask=mask_NC, other=0.0).to(tl.float32)
    sin_NC = tl.load(sin_pointers, mask=mask_NC, other=0.0).to(tl.float32)
    for part in tl.static_range(2):
        if part == 0:
            x_rows = q_ptr + batch_N1 * q_batch + position_N1 * q_token
            x_head, x_channel, num_heads = q_head, q_channel, q_heads
            out_ptr, rstd_ptr = q_out_ptr, q_rstd_ptr
        else:
            x_rows = k_ptr + batch_N1 * k_batch + position_N1 * k_token
            x_head, x_channel, num_heads = k_head, k_channel, k_heads
            out_ptr, rstd_ptr = k_out_ptr, k_rstd_ptr
        heads_N = tokens_N.to(tl.int64) * num_heads
        for _ in range(num_heads):
            first_pointers = x_rows + channels_1C * x_channel
            first_NC = tl.load(first_pointers, mask=mask_NC, other=0.0).to(tl.float32)
            second_pointers = x_rows + (HALF + channels_1C) * x_channel
            second_NC = tl.load(second_pointers, mask=mask_NC, other=0.0).to(tl.float32)
            # The norm of what the rounded tables make of the head, not of the head: they rotate it inexactly.
            a_NC = first_NC * cos_NC + second_NC * sin_NC
            b_NC = second_NC * cos_NC - first_NC * sin_NC
            square_N = tl.sum(a_NC * a_NC + b_NC * b_NC, 1) / (2 * HALF)
            rstd_N = tl.rsqrt(tl.where(inside_N, square_N + eps, 1.0))
            factor_N1 = (rstd_N * scale)[:, None]
            offsets_NC = (heads_N * (2 * HALF))[:, None] + channels_1C
            tl.store(out_ptr + offsets_NC, a_NC * factor_N1, mask=mask_NC)
            tl.store(out_ptr + offsets_NC + HALF, b_NC * factor_N1, mask=mask_NC)
            tl.store(rstd_ptr + heads_N, rstd_N, mask=inside_N)
            x_rows += x_head
            heads_N += 1


@triton.jit
def _backward_kernel(
    q_grad_ptr, k_grad_ptr, q_out_ptr, k_out_ptr, q_rstd_ptr, k_rstd_ptr, cos_ptr, sin_ptr,
    q_in_ptr, k_in_ptr,
    num_tokens, row_tokens, q_heads, k_heads, q_batch, q_token, q_head, q_channel, k_batch, k_token, k_head,
    k_channel, cos_token, cos_channel, sin_token, sin_channel, scale, inverse_scale,
    HALF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tokens_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels_1C = tl.arange(0, BLOCK_C).to(tl.int64)[None, :]
    inside_N = tokens_N < num_tokens
    mask_NC = inside_N[:, None] & (channels_1C < HALF)
    batch_N1 = (tokens_N // row_tokens).to(tl.int64)[:, None]
    position_N1 = (tokens_N % row_tokens).to(tl.int64)[:, None]
    cos_pointers = cos_ptr + position_N1 * cos_token + channels_1C * cos_channel
    sin_pointers = sin_ptr + position_N1 * sin_token + channels_1C * sin_channel
    cos_NC = tl.load(cos_pointers, mask=mask_NC, other=0.0).to(tl.float32)
    sin_NC = tl.load(sin_pointers, mask=mask_NC, other=0.0).to(tl.float32)
    for part in tl.static_range(2):
        if part == 0:
            grad_rows = q_grad_ptr + batch_N1 * q_batch + position_N1 * q_token
            grad_head, grad_channel, num_heads = q_head, q_channel, q_heads
            out_ptr, in_ptr, rstd_ptr = q_out_ptr, q_in_ptr, q_rstd_ptr
        else:
            grad_rows = k_grad_ptr + batch_N1 * k_batch + position_N1 * k_token
            grad_head, grad_channel, num_heads = k_head, k_channel, k_heads
            out_ptr, in_ptr, rstd_ptr = k_out_ptr, k_in_ptr, k_rstd_ptr
        heads_N = tokens_N.to(tl.int64) * num_heads
        for _ in range(num_heads):
            offsets_NC = (heads_N * (2 * HALF))[:, None] + channels_1C
            a_NC = tl.load(out_ptr + offsets_NC, mask=mask_NC, other=0.0).to(tl.float32)
            b_NC = tl.load(out_ptr + offsets_NC + HALF, mask=mask_NC, other=0.0).to(tl.float32)
            a_NC, b_NC = a_NC * inverse_scale, b_NC * inverse_scale  # the normed head
            first_pointers = grad_rows + channels_1C * grad_channel
            grad_a_NC = tl.load(first_pointers, mask=mask_NC, other=0.0).to(tl.float32)
            second_pointers = grad_rows + (HALF + channels_1C) * grad_channel
            grad_b_NC = tl.load(second_pointers, mask=mask_NC, other=0.0).to(tl.float32)
            rstd_N = tl.load(rstd_ptr + heads_N, mask=inside_N, other=0.0)
            factor_N1 = (rstd_N * scale)[:, None]
            along_N1 = (tl.sum(a_NC * grad_a_NC + b_NC * grad_b_NC, 1) / (2 * HALF))[:, None]
            grad_a_NC = (grad_a_NC - a_NC * along_N1) * factor_N1
            grad_b_NC = (grad_b_NC - b_NC * along_N1) * factor_N1
            tl.store(in_ptr + offsets_NC, grad_a_NC * cos_NC - grad_b_NC * sin_NC, mask=mask_NC)
            tl.store(in_ptr + offsets_NC + HALF, grad_a_NC * sin_NC + grad_b_NC * cos_NC, mask=mask_NC)
            grad_rows += grad_head
            heads_N += 1


def _grid(q_BTHK: Tensor, config: Config) -> tuple[int]:
    return (triton.cdiv(q_BTHK.shape[0] * q_BTHK.shape[1], config.blocks["BLOCK_N"]),)


def _sizes_and_strides(q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor) -> tuple[int, ...]:
    """What both kernels take after their pointers."""
    B, T, H, _ = q_BTHK.shape
    tables = (cos.stride(1), cos.stride(3), sin.stride(1), sin.stride(3))
    return (B * T, T, H, k_BTGK.shape[2], *q_BTHK.stride(), *k_BTGK.stride(), *tables)


def _empty(q_BTHK: Tensor, k_BTGK: Tensor) -> tuple[Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), k_BTGK.new_empty(k_BTGK.shape)


def _empty_rstd(q_BTHK: Tensor, k_BTGK: Tensor) -> tuple[Tensor, Tensor]:
    q_rstd_BTH = q_BTHK.new_empty(q_BTHK.shape[:3], dtype=torch.float32)
    return q_rstd_BTH, k_BTGK.new_empty(k_BTGK.shape[:3], dtype=torch.float32)


@library.custom_op("speedrun::rotary_qk_norm", mutates_args=())
def _rotary_qk_norm(
    q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, k, 1/rms of each head of q, of k)."""
    ran("rotary_qk_norm", "triton")
    outputs = (*_empty(q_BTHK, k_BTGK), *_empty_rstd(q_BTHK, k_BTGK))
    config = _config(architecture(q_BTHK.device), q_BTHK.shape[3])
    sizes = _sizes_and_strides(q_BTHK, k_BTGK, cos, sin)
    arguments = (q_BTHK, k_BTGK, cos, sin, *outputs, *sizes, scale, eps)
    launch(_forward_kernel, _grid(q_BTHK, config), arguments, (4, 5, 6, 7), config, HALF=q_BTHK.shape[3] // 2)
    return outputs


@_rotary_qk_norm.register_fake
def _(
    q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*_empty(q_BTHK, k_BTGK), *_empty_rstd(q_BTHK, k_BTGK))


@library.custom_op("speedrun::rotary_qk_norm_gradients", mutates_args=())
def _gradients(
    q_grad_BTHK: Tensor,
    k_grad_BTGK: Tensor,
    q_out_BTHK: Tensor,
    k_out_BTGK: Tensor,
    q_rstd_BTH: Tensor,
    k_rstd_BTG: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    inputs = _empty(q_grad_BTHK, k_grad_BTGK)
    config = _config(architecture(q_grad_BTHK.device), q_grad_BTHK.shape[3])
    kept = (q_out_BTHK, k_out_BTGK, q_rstd_BTH, k_rstd_BTG)
    sizes = _sizes_and_strides(q_grad_BTHK, k_grad_BTGK, cos, sin)
    inverse_scale = 1.0 / scale if scale else 0.0  # with a factor of 0 no gradient is left to be right
    arguments = (q_grad_BTHK, k_grad_BTGK, *kept, cos, sin, *inputs, *sizes, scale, inverse_scale)
    half = q_grad_BTHK.shape[3] // 2
    launch(_backward_kernel, _grid(q_grad_BTHK, config), arguments, (8, 9), config, HALF=half)
    return inputs


@_gradients.register_fake
def _(
    q_grad_BTHK: Tensor,
    k_grad_BTGK: Tensor,
    q_out_BTHK: Tensor,
    k_out_BTGK: Tensor,
    q_rstd_BTH: Tensor,
    k_rstd_BTG: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _empty(q_grad_BTHK, k_grad_BTGK)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, cos, sin, ctx.scale, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output, cos, sin)


def _backward(ctx: Any, q_grad_BTHK: Tensor, k_grad_BTGK: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # Autograd gives zeros for an output without a gradient, never None.
    gradients = _gradients(q_grad_BTHK, k_grad_BTGK, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None, None


_rotary_qk_norm.register_autograd(_backward, setup_context=_setup_context)


def rotary_qk_norm(
    q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by position, each head normalised, times `scale`; `reference.rotary_qk_norm`.

    Args:
        q_BTHK, k_BTGK: of any strides, so views of packed projections too; float32 or bfloat16.
        cos, sin: [1, T, 1, K/2] in the dtype of q; they get no gradient.
    """
    require_dtype("q_BTHK", q_BTHK, DTYPES)
    require_shape("q_BTHK", q_BTHK, (None, None, None, None))
    B, T, _, K = q_BTHK.shape
    fits = 2 <= K <= LARGEST_HEAD_DIM and K % 2 == 0
    require(fits, "q_BTHK", f"head dim {K}, expected an even one up to {LARGEST_HEAD_DIM}")
    for name, tensor, shape in (
        ("k_BTGK", k_BTGK, (B, T, None, K)),
        ("cos", cos, (1, T, 1, K // 2)),
        ("sin", sin, (1, T, 1, K // 2)),
    ):
        require_dtype(name, tensor, (q_BTHK.dtype,))
        require_shape(name, tensor, shape)
        require_device(name, tensor, q_BTHK)
    q_BTHK, k_BTGK, _, _ = _rotary_qk_norm(q_BTHK, k_BTGK, cos, sin, scale, eps)
    return q_BTHK, k_BTGK


def specimens(arch: int) -> list[Specimen]:
    """Both kernels at the usual head dims, as launched for this architecture."""
    made = []
    for dtype, head_dim in (("bf16", 128), ("bf16", 64), ("fp32", 128)):
        for kernel in (_forward_kernel, _backward_kernel):
            names = [name for name in kernel.arg_names if name.islower()]
            types = {name: f"*{dtype}" for name in names if name.endswith("_ptr")}
            types |= dict.fromkeys([name for name in types if "rstd" in name], "*fp32")
            floats = dict.fromkeys([name for name in names if "scale" in name or name == "eps"], "fp32")
            constants = {name: 1 for name in names if name.endswith("_channel")} | {"HALF": head_dim // 2}
            integers = [name for name in names if name not in types | floats | constants]
            signature = types | floats | dict.fromkeys(integers, "i32")
            aligned = (*types, *(name for name in integers if not name.endswith("_heads")))
            made.append(Specimen(kernel, signature, constants, _config(arch, head_dim), aligned, False))
    return made
