"""Causal sliding-window attention that visits only the blocks a query may see, forward and backward.

The forward keeps each row's log-sum-exp, from which the backward makes the probabilities again: only q, k,
v, the output and one float32 a row and head live until then. The backward is two kernels, by blocks of
queries (dq) and by blocks of keys (dk, dv), so that every gradient is summed by one program, in one order,
without atomics. Key heads that several query heads share are read where they are. Logits are in units of
log 2, for exp2.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head dim; BLOCK_Q queries and BLOCK_W keys of
a block, BLOCK_K the next power of two of K.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.arguments import require
from kernels.counting import ran
from kernels.sliding_window_attention import require_attention_arguments
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

DTYPES = (torch.float32, torch.bfloat16)
LARGEST_HEAD_DIM = 128
SMALLEST_BLOCK = 16  # of tl.dot, in every dimension
_LOG2_E = math.log2(math.e)


@triton.jit
def _load(ptr, rows_R, row_stride, column_stride, num_rows, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of one head, [R, BLOCK_K], zero past the last row and column."""
    columns_1K = tl.arange(0, BLOCK_K).to(tl.int64)[None, :]
    rows_R1 = rows_R.to(tl.int64)[:, None]
    mask_RK = (rows_R1 < num_rows) & (columns_1K < K)
    return tl.load(ptr + rows_R1 * row_stride + columns_1K * column_stride, mask=mask_RK, other=0.0)


@triton.jit
def _store(ptr, values_RK, rows_R, row_stride, num_rows, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows of one head of a tensor whose columns are adjacent."""
    columns_1K = tl.arange(0, BLOCK_K)[None, :]
    rows_R1 = rows_R.to(tl.int64)[:, None]
    mask_RK = (rows_R1 < num_rows) & (columns_1K < K)
    tl.store(ptr + rows_R1 * row_stride + columns_1K, values_RK, mask=mask_RK)


@triton.jit
def _visible(queries, keys, num_tokens, window):
    """Whether a query sees a key; broadcasts."""
    return (keys <= queries) & (keys >= queries - window) & (queries < num_tokens) & (keys < num_tokens)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, normaliser_ptr,
    q_batch, q_token, q_head, q_column, k_batch, k_token, k_head, k_column,
    v_batch, v_token, v_head, v_column,
    num_tokens, num_heads, group, window, log2_scale,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(num_tokens, BLOCK_Q)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)  # of B x H
    batch, head = row // num_heads, row % num_heads
    first_query = tl.program_id(0) % num_blocks * BLOCK_Q
    queries_Q = first_query + tl.arange(0, BLOCK_Q)
    q = _load(q_ptr + batch * q_batch + head * q_head, queries_Q, q_token, q_column, num_tokens, K, BLOCK_K)
    k_rows = k_ptr + batch * k_batch + head // group * k_head
    v_rows = v_ptr + batch * v_batch + head // group * v_head
    largest_Q = tl.full((BLOCK_Q,), -1e30, tl.float32)  # finite: a block may show a query nothing
    sum_Q = tl.zeros((BLOCK_Q,), tl.float32)
    y_QK = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    first_key = tl.maximum(first_query - window, 0) // BLOCK_W * BLOCK_W
    for start in range(first_key, tl.minimum(first_query + BLOCK_Q, num_tokens), BLOCK_W):
        keys_W = start + tl.arange(0, BLOCK_W)
        k = _load(k_rows, keys_W, k_token, k_column, num_tokens, K, BLOCK_K)
        v = _load(v_rows, keys_W, v_token, v_column, num_tokens, K, BLOCK_K)
        logits_QW = tl.dot(q, tl.trans(k), input_precision="ieee") * log2_scale
        visible_QW = _visible(queries_Q[:, None], keys_W[None, :], num_tokens, window)
        logits_QW = tl.where(visible_QW, logits_QW, float("-inf"))
        larger_Q = tl.maximum(largest_Q, tl.max(logits_QW, 1))
        e_QW = tl.exp2(logits_QW - larger_Q[:, None])
        shrink_Q = tl.exp2(largest_Q - larger_Q)
        sum_Q = sum_Q * shrink_Q + tl.sum(e_QW, 1)
        y_QK = y_QK * shrink_Q[:, None] + tl.dot(e_QW.to(v.dtype), v, input_precision="ieee")
        largest_Q = larger_Q
    sum_Q = tl.where(sum_Q == 0.0, 1.0, sum_Q)  # queries past the last token
    _store(
        y_ptr + (batch * num_tokens * num_heads + head) * K,
        (y_QK / sum_Q[:, None]).to(y_ptr.dtype.element_ty),
        queries_Q, num_heads * K, num_tokens, K, BLOCK_K,
    )  # fmt: skip
    normaliser_Q = largest_Q + tl.log2(sum_Q)
    tl.store(normaliser_ptr + row * num_tokens + queries_Q, normaliser_Q, mask=queries_Q < num_tokens)


@triton.jit
def _query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, grad_ptr, normaliser_ptr, mean_ptr, grad_q_ptr,
    q_batch, q_token, q_head, q_column, k_batch, k_token, k_head, k_column,
    v_batch, v_token, v_head, v_column,
    y_batch, y_token, y_head, y_column, grad_batch, grad_token, grad_head, grad_column,
    num_tokens, num_heads, group, window, scale, log2_scale,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(num_tokens, BLOCK_Q)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, head = row // num_heads, row % num_heads
    first_query = tl.program_id(0) % num_blocks * BLOCK_Q
    queries_Q = first_query + tl.arange(0, BLOCK_Q)
    mask_Q = queries_Q < num_tokens
    grad_rows = grad_ptr + batch * grad_batch + head * grad_head
    grad = _load(grad_rows, queries_Q, grad_token, grad_column, num_tokens, K, BLOCK_K)
    y = _load(y_ptr + batch * y_batch + head * y_head, queries_Q, y_token, y_column, num_tokens, K, BLOCK_K)
    # do . o: the mean that softmax's derivative takes out of each row of do . v.
    mean_Q = tl.sum(grad.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(mean_ptr + row * num_tokens + queries_Q, mean_Q, mask=mask_Q)
    normaliser_Q = tl.load(normaliser_ptr + row * num_tokens + queries_Q, mask=mask_Q, other=0.0)
    q = _load(q_ptr + batch * q_batch + head * q_head, queries_Q, q_token, q_column, num_tokens, K, BLOCK_K)
    k_rows = k_ptr + batch * k_batch + head // group * k_head
    v_rows = v_ptr + batch * v_batch + head // group * v_head
    grad_q_QK = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    first_key = tl.maximum(first_query - window, 0) // BLOCK_W * BLOCK_W
    for start in range(first_key, tl.minimum(first_query + BLOCK_Q, num_tokens), BLOCK_W):
        keys_W = start + tl.arange(0, BLOCK_W)
        k = _load(k_rows, keys_W, k_token, k_column, num_tokens, K, BLOCK_K)
        v = _load(v_rows, keys_W, v_token, v_column, num_tokens, K, BLOCK_K)
        logits_QW = tl.dot(q, tl.trans(k), input_precision="ieee") * log2_scale
        visible_QW = _visible(queries_Q[:, None], keys_W[None, :], num_tokens, window)
        p_QW = tl.exp2(tl.where(visible_QW, logits_QW - normaliser_Q[:, None], float("-inf")))
        grad_p_QW = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_logits_QW = p_QW * (grad_p_QW - mean_Q[:, None])
        grad_q_QK += tl.dot(grad_logits_QW.to(k.dtype), k, input_precision="ieee")
    grad_q = (grad_q_QK * scale).to(grad_q_ptr.dtype.element_ty)
    grad_q_rows = grad_q_ptr + (batch * num_tokens * num_heads + head) * K
    _store(grad_q_rows, grad_q, queries_Q, num_heads * K, num_tokens, K, BLOCK_K)


@triton.jit
def _key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, normaliser_ptr, mean_ptr, grad_k_ptr, grad_v_ptr,
    q_batch, q_token, q_head, q_column, k_batch, k_token, k_head, k_column,
    v_batch, v_token, v_head, v_column,
    grad_batch, grad_token, grad_head, grad_column,
    num_tokens, num_heads, group, window, scale, log2_scale,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(num_tokens, BLOCK_W)
    num_key_heads = num_heads // group
    row = (tl.program_id(0) // num_blocks).to(tl.int64)  # of B x G
    batch, key_head = row // num_key_heads, row % num_key_heads
    first_key = tl.program_id(0) % num_blocks * BLOCK_W
    keys_W = first_key + tl.arange(0, BLOCK_W)
    k = _load(k_ptr + batch * k_batch + key_head * k_head, keys_W, k_token, k_column, num_tokens, K, BLOCK_K)
    v = _load(v_ptr + batch * v_batch + key_head * v_head, keys_W, v_token, v_column, num_tokens, K, BLOCK_K)
    grad_k_WK = tl.zeros((BLOCK_W, BLOCK_K), tl.float32)
    grad_v_WK = tl.zeros((BLOCK_W, BLOCK_K), tl.float32)
    last_query = tl.minimum(first_key + BLOCK_W + window, num_tokens)
    for head in range(key_head * group, (key_head + 1) * group):
        q_rows = q_ptr + batch * q_batch + head * q_head
        grad_rows = grad_ptr + batch * grad_batch + head * grad_head
        statistics = (batch * num_heads + head) * num_tokens
        for start in range(first_key // BLOCK_Q * BLOCK_Q, last_query, BLOCK_Q):
            queries_Q = start + tl.arange(0, BLOCK_Q)
            mask_Q = queries_Q < num_tokens
            q = _load(q_rows, queries_Q, q_token, q_column, num_tokens, K, BLOCK_K)
            grad = _load(grad_rows, queries_Q, grad_token, grad_column, num_tokens, K, BLOCK_K)
            normaliser_Q = tl.load(normaliser_ptr + statistics + queries_Q, mask=mask_Q, other=0.0)
            mean_Q = tl.load(mean_ptr + statistics + queries_Q, mask=mask_Q, other=0.0)
            logits_WQ = tl.dot(k, tl.trans(q), input_precision="ieee") * log2_scale
            visible_WQ = _visible(queries_Q[None, :], keys_W[:, None], num_tokens, window)
            p_WQ = tl.exp2(tl.where(visible_WQ, logits_WQ - normaliser_Q[None, :], float("-inf")))
            grad_v_WK += tl.dot(p_WQ.to(grad.dtype), grad, input_precision="ieee")
            grad_p_WQ = tl.dot(v, tl.trans(grad), input_precision="ieee")
            grad_logits_WQ = p_WQ * (grad_p_WQ - mean_Q[None, :])
            grad_k_WK += tl.dot(grad_logits_WQ.to(q.dtype), q, input_precision="ieee")
    offset = (batch * num_tokens * num_key_heads + key_head) * K
    grad_k = (grad_k_WK * scale).to(grad_k_ptr.dtype.element_ty)
    grad_v = grad_v_WK.to(grad_v_ptr.dtype.element_ty)
    _store(grad_k_ptr + offset, grad_k, keys_W, num_key_heads * K, num_tokens, K, BLOCK_K)
    _store(grad_v_ptr + offset, grad_v, keys_W, num_key_heads * K, num_tokens, K, BLOCK_K)


Table = dict[int, tuple[int, int, int, int]]


class Launch(NamedTuple):
    """A kernel's (BLOCK_Q, BLOCK_W, warps, stages) by the lowest architecture; 0 is the interpreter.

    The largest tried that at a head dimension of 128 neither spill registers nor pass the architecture's
    shared memory. float32 products run on the vector units, whose operands lie in registers.
    """

    kernel: Any
    programs_by: str
    bfloat16: Table
    float32: Table

    def config(self, arch: int, head_dim: int, dtype: torch.dtype) -> Config:
        """How it is launched for heads of this dimension and dtype."""
        table = self.float32 if dtype == torch.float32 else self.bfloat16
        block_Q, block_W, warps, stages = table[max(known for known in table if known <= arch)]
        block_K = max(triton.next_power_of_2(head_dim), SMALLEST_BLOCK)
        return Config({"BLOCK_Q": block_Q, "BLOCK_W": block_W, "BLOCK_K": block_K}, warps, stages)


# Small, so that short rows, all that the interpreter has time for, have several blocks.
_QUERIES, _KEYS = (32, 16, 4, 1), (16, 16, 4, 1)
_FORWARD = Launch(
    _forward_kernel,
    "BLOCK_Q",
    {0: _QUERIES, 80: (128, 64, 8, 2), 90: (128, 64, 8, 3), 100: (128, 64, 8, 2)},
    {0: _QUERIES, 80: (32, 16, 8, 1)},
)
_QUERY_GRADIENT = Launch(
    _query_gradient_kernel,
    "BLOCK_Q",
    {0: _QUERIES, 80: (128, 32, 8, 2), 90: (128, 64, 8, 2)},
    {0: _QUERIES, 80: (32, 32, 16, 1)},
)
_KEY_GRADIENT = Launch(
    _key_gradient_kernel,
    "BLOCK_W",
    {0: _KEYS, 80: (64, 64, 8, 2), 100: (32, 64, 8, 2)},
    {0: _KEYS, 80: (32, 16, 8, 1)},
)


def _run(
    launched: Launch,
    tensors: tuple[Tensor, ...],
    written: tuple[int, ...],
    strided: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
) -> None:
    """One program for each block of queries of each query head, or of keys of each key head.

    Args:
        strided: q, k, and the other tensors whose strides the kernel takes.
    """
    q_BTHK, k_BTGK = strided[:2]
    B, T, H, K = q_BTHK.shape
    config = launched.config(architecture(q_BTHK.device), K, q_BTHK.dtype)
    heads = H if launched.programs_by == "BLOCK_Q" else k_BTGK.shape[2]
    grid = (B * heads * triton.cdiv(T, config.blocks[launched.programs_by]),)
    strides = [stride for tensor in strided for stride in tensor.stride()]
    arguments = (*tensors, *strides, T, H, H // k_BTGK.shape[2], *numbers)
    launch(launched.kernel, grid, arguments, written, config, K=K)


@library.custom_op("speedrun::triton_attention", mutates_args=())
def _attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The output and the log2 of each row's normaliser, [B, H, T]."""
    ran("attention", "triton")
    B, T, H, K = q_BTHK.shape
    y_BTHK = q_BTHK.new_empty(q_BTHK.shape)
    normaliser_BHT = q_BTHK.new_empty((B, H, T), dtype=torch.float32)
    inputs = (q_BTHK, k_BTGK, v_BTGK)
    numbers = (min(window, T), K**-0.5 * _LOG2_E)
    _run(_FORWARD, (*inputs, y_BTHK, normaliser_BHT), (3, 4), inputs, numbers)
    return y_BTHK, normaliser_BHT


@_attention.register_fake
def _(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((B, H, T), dtype=torch.float32)


@library.custom_op("speedrun::triton_attention_gradients", mutates_args=())
def _gradients(
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    y_BTHK: Tensor,
    normaliser_BHT: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q_BTHK, k_BTGK, v_BTGK))
    mean_BHT = torch.empty_like(normaliser_BHT)
    inputs, statistics = (q_BTHK, k_BTGK, v_BTGK), (normaliser_BHT, mean_BHT)
    numbers = (min(window, T), K**-0.5, K**-0.5 * _LOG2_E)
    tensors = (*inputs, y_BTHK, grad_BTHK, *statistics, grad_q)
    strided = (*inputs, y_BTHK, grad_BTHK)
    _run(_QUERY_GRADIENT, tensors, (6, 7), strided, numbers)
    of_keys = (*inputs, grad_BTHK, *statistics, grad_k, grad_v)
    _run(_KEY_GRADIENT, of_keys, (6, 7), (*inputs, grad_BTHK), numbers)
    return grad_q, grad_k, grad_v


@_gradients.register_fake
def _(
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    y_BTHK: Tensor,
    normaliser_BHT: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), k_BTGK.new_empty(k_BTGK.shape), v_BTGK.new_empty(v_BTGK.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad_BTHK: Tensor, grad_normaliser: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(grad_BTHK, *ctx.saved_tensors, ctx.window), None)


_attention.register_autograd(_backward, setup_context=_setup_context)


def sliding_window_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    """Attention over a query itself and `window` keys to its left; reference: the function of the same name.

    Args:
        q_BTHK, k_BTGK, v_BTGK: of any strides, float32 or bfloat16, K up to 128.
    """
    require_attention_arguments(q_BTHK, k_BTGK, v_BTGK, window, DTYPES)
    require(q_BTHK.shape[3] <= LARGEST_HEAD_DIM, "q_BTHK", f"head dimension above {LARGEST_HEAD_DIM}")
    y_BTHK: Tensor = _attention(q_BTHK, k_BTGK, v_BTGK, window)[0]
    return y_BTHK


def specimens(arch: int) -> list[Specimen]:
    """The three kernels at head dimensions 64 and 128 in bf16 and 128 in float32, as launched there."""
    made = []
    bf16, fp32 = torch.bfloat16, torch.float32
    for name, dtype, head_dim in (("bf16", bf16, 128), ("bf16", bf16, 64), ("fp32", fp32, 128)):
        for launched in (_FORWARD, _QUERY_GRADIENT, _KEY_GRADIENT):
            names, config = launched.kernel.arg_names, launched.config(arch, head_dim, dtype)
            constants = {each: 1 for each in names if each.endswith("_column")} | {"K": head_dim}
            free = [each for each in names if each not in constants | config.blocks]
            pointers = [each for each in free if each.endswith("_ptr")]
            strides = [each for each in free if each.endswith(("_batch", "_token", "_head"))]
            signature = dict.fromkeys(free, "i32") | dict.fromkeys(pointers, f"*{name}")
            signature |= {each: "*fp32" for each in ("normaliser_ptr", "mean_ptr") if each in free}
            signature |= {each: "fp32" for each in free if each.endswith("scale")}
            aligned = (*pointers, *strides, "num_tokens")
            made.append(Specimen(launched.kernel, signature, constants, config, aligned, dtype == bf16))
    return made
