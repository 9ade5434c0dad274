"""Eager references: the oracle of the tests, the baseline of the benchmarks, and the meaning of every op.

Shapes: B batch, T tokens of a row, N = B*T rows, D model width, F width inside the MLP, H query heads,
G key/value heads, K head dim, V vocabulary, R rows of a table, M x P a matrix, S stacked matrices. Written to
be read, in any dtype, float64 included. A trailing underscore in a name: arguments are changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# What `F.rms_norm(eps=None)` means for float32, float16 and bfloat16 alike (measured on torch 2.11 and 2.13);
# stated, so that a later default cannot change results.
RMS_NORM_EPS = torch.finfo(torch.float32).eps
SMALLEST_NORM = 1e-6  # MuonEq and Muon+ divide by no less (nanochat 4e014d3)
SMALLEST_SECOND_MOMENT = 1e-10  # NorMuon's clamp (nanochat)
# The bigram hash of nanochat #747: two odd multipliers, xor, floor-mod, all in int32.
BIGRAM_CURRENT, BIGRAM_PREVIOUS = 36313, 27191
SMALLEST_FP8_AMAX = 1e-12  # nanochat's fp8.py: a tensor of zeros is scaled by a finite number

# Polar Express, 5 iterations, safety factor 2e-2, cushion 2 (Amsel et al., arXiv 2505.16932, the coefficients
# nanochat uses).
POLAR_EXPRESS_COEFFICIENTS: tuple[tuple[float, float, float], ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 (the oracle), float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the table in the compute dtype, [B, T, D]."""
    return F.embedding(tokens_BT, weight_VD).to(dtype)


def bigram_rows(tokens_BT: Tensor, num_rows: int) -> Tensor:
    """The table's row of each (previous, current) token, int64 [B, T]: a hash in [0, R - 1), at first R - 1.

    int32 throughout: ids from 59,138 on overflow the multiplication, and the negative hashes that this makes
    need torch's `%`, a floor-mod; C's and Triton's truncates.
    """
    tokens = tokens_BT.to(torch.int32)
    hashed = (BIGRAM_CURRENT * tokens[:, 1:]) ^ (BIGRAM_PREVIOUS * tokens[:, :-1])
    first = torch.full_like(tokens[:, :1], num_rows - 1)
    return torch.cat((first, hashed % (num_rows - 1)), dim=1).long()


def bigram_residual(x_BTD: Tensor, table_RD: Tensor, tokens_BT: Tensor, strength: Tensor) -> Tensor:
    """`x + strength * table[bigram_rows]`, in the dtype of x; `strength` is a float32 scalar tensor."""
    rows_BTD = embedding(table_RD, bigram_rows(tokens_BT, table_RD.shape[0]), x_BTD.dtype)
    return x_BTD + strength * rows_BTD


def rms_norm(x_ND: Tensor, eps: float = RMS_NORM_EPS) -> Tensor:
    """x / rms(x) over the last dimension, no weights."""
    return F.rms_norm(x_ND, (x_ND.shape[-1],), eps=eps)


def mix_rms_norm(
    x_ND: Tensor, other_ND: Tensor, x_scale: Tensor, other_scale: Tensor, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """(z, rms_norm(z)) with z = x_scale * x + other_scale * other, both in the dtype of x.

    Args:
        x_scale, other_scale: float32 scalar tensors, of no dimension (which do not promote a bf16 x).
    """
    mixed_ND = x_scale * x_ND + other_scale * other_ND
    return mixed_ND, rms_norm(mixed_ND, eps)


def rotate(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + K/2) by minus the position's angle, nanochat's direction."""
    first, second = x_BTHK.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def rotary_qk_norm(
    q_BTHK: Tensor, k_BTGK: Tensor, cos: Tensor, sin: Tensor, scale: float, eps: float = RMS_NORM_EPS
) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by position, each head normalised, times `scale`.

    Args:
        cos, sin: [1, T, 1, K/2] in the dtype of q.
    """
    q_BTHK, k_BTGK = (rms_norm(rotate(x, cos, sin), eps) * scale for x in (q_BTHK, k_BTGK))
    return q_BTHK, k_BTGK


def softcap_logits(logits_NV: Tensor, softcap: float) -> Tensor:
    """`softcap * tanh(logits / softcap)`; 0 leaves them as they are."""
    return softcap * torch.tanh(logits_NV / softcap) if softcap else logits_NV


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T`, soft-capped, in nats.

    Args:
        hidden_ND: final hidden states.
        weight_VD: head weights of the real vocabulary, cast to the dtype of `hidden_ND`.
        targets_N: token ids; rows with `ignore_index` lose nothing and get no gradient.
        reduction: "mean" over the counted rows (0 when there are none), "sum", or "none" ([N]).
        z_loss: this times the squared log of the softmax's normaliser is added to each counted row's loss
            (PaLM, arXiv 2204.02311).
    """
    logits_NV = softcap_logits(
        (hidden_ND @ weight_VD.to(hidden_ND.dtype).T).to(accumulation_dtype(hidden_ND)), softcap
    )
    loss_N = F.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index, reduction="none")
    if z_loss:
        loss_N = loss_N + z_loss * logits_NV.logsumexp(1).square() * (targets_N != ignore_index)
    if reduction == "none":
        return loss_N
    total = loss_N.sum()
    return total if reduction == "sum" else total / (targets_N != ignore_index).sum().clamp_min(1)


def sliding_window_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, window: int) -> Tensor:
    """Causal attention: a query sees itself and `window` keys to its left; logits are scaled by 1/sqrt(K).

    Groups of H/G query heads share a key head. The mask is dense: T x T memory.
    """
    positions_T = torch.arange(q_BTHK.shape[1], device=q_BTHK.device)
    distance_TT = positions_T[:, None] - positions_T[None, :]
    mask_TT = (distance_TT >= 0) & (distance_TT <= window)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    logits_BHTT = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    logits_BHTT = logits_BHTT.masked_fill(~mask_TT, float("-inf")).to(accumulation_dtype(q))
    probabilities_BHTT = logits_BHTT.softmax(-1)
    y_BHTK: Tensor = probabilities_BHTT.to(q.dtype) @ v
    return y_BHTK.transpose(1, 2)


def polar_express(
    gradient_SMP: Tensor, steps: int = 5, norm_scale: float = 1.01, equilibrate: str = "none"
) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: singular values in [0.86, 1.14] (arXiv 2505.16932).

    Args:
        equilibrate: MuonEq first: "row" or "column" brings all of them to one norm, the matrix keeping its
            own; "none".
    """
    X: Tensor = gradient_SMP if equilibrate == "none" else _equilibrated(gradient_SMP, equilibrate)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * norm_scale + 1e-6)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


def _equilibrated(matrix_SMP: Tensor, lines: str) -> Tensor:
    dim = -1 if lines == "row" else -2
    norms = matrix_SMP.norm(dim=dim, keepdim=True)
    target = norms.square().sum((-2, -1), keepdim=True).sqrt() / norms.shape[-3 - dim] ** 0.5
    equal_SMP: Tensor = matrix_SMP * (target / norms.clamp_min(SMALLEST_NORM))
    return equal_SMP


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2."""
    return x.relu().square()


def relu_squared_mlp(x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """`relu(x @ up.T)^2 @ down.T`; the float32 masters are cast to the dtype of x."""
    return relu_squared(x_ND @ up_FD.to(x_ND.dtype).T) @ down_DF.to(x_ND.dtype).T


def quantise_fp8(x_MP: Tensor, dtype: torch.dtype, rowwise: bool = False) -> tuple[Tensor, Tensor]:
    """(codes [M, P], scale [] or [M, 1] float32), x ~ codes * scale; the largest |x| gets the largest code.

    Args:
        dtype: float8_e4m3fn (inputs, weights) or float8_e5m2 (gradients).
        rowwise: one scale a row instead of one for all.
    """
    largest_code = torch.finfo(dtype).max
    x = x_MP.to(accumulation_dtype(x_MP))
    amax = x.abs().amax(1, keepdim=True) if rowwise else x.abs().max()
    # The reciprocal in float64, as nanochat takes it: its rounding would move the largest value off its code.
    multiplier = (largest_code / amax.double().clamp_min(SMALLEST_FP8_AMAX)).float()
    codes_MP = (x * multiplier).clamp(-largest_code, largest_code).to(dtype)
    return codes_MP, multiplier.reciprocal()


def muon_direction_(
    grads_SMP: Tensor, momentum_SMP: Tensor, momentum: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Nesterov momentum of the gradients, `momentum_SMP` updated.

    Args:
        dtype: what the result is rounded to; None is the gradients'.
    """
    momentum_SMP.lerp_(grads_SMP, 1.0 - momentum)
    return grads_SMP.lerp(momentum_SMP, momentum).to(dtype)


def neuron_dim(matrix_SMP: Tensor) -> int:
    """The dimension averaged by NorMuon: inputs of each output where M >= P, else outputs of each input."""
    return -1 if matrix_SMP.shape[-2] >= matrix_SMP.shape[-1] else -2


def muon_update_(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool = False,
) -> None:
    """Muon+, NorMuon, cautious weight decay and the update of a stack of matrices, in place.

    Args:
        update_SMP: the orthogonalised directions, in the polar step's dtype.
        second_moment: NorMuon's, [S, M, 1] or [S, 1, P] by `neuron_dim`, float32; None without NorMuon.
        renormalise: Muon+, the Frobenius norm becomes sqrt(min(M, P)).
    """
    update = update_SMP.to(params_SMP.dtype)
    if renormalise:
        norm = update.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALLEST_NORM)
        update = update * (min(update.shape[-2:]) ** 0.5 / norm)
    if second_moment is not None:
        mean_square = update.square().mean(neuron_dim(update), keepdim=True)
        second_moment.lerp_(mean_square, 1.0 - beta2)
        scaled = update * second_moment.clamp_min(SMALLEST_SECOND_MOMENT).rsqrt()
        norm, scaled_norm = (x.norm(dim=(-2, -1), keepdim=True) for x in (update, scaled))
        update = scaled * (norm / scaled_norm.clamp_min(SMALLEST_SECOND_MOMENT))
    agree = (update * params_SMP) >= 0
    params_SMP.sub_(lr * update + lr * weight_decay * params_SMP * agree)


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int | Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One decoupled AdamW step of each parameter, in place (arXiv 1711.05101).

    Parameters and gradients may be bf16, and then the moments, too; the arithmetic is float32 (or float64),
    and the step is taken from the moments before they are rounded.

    Args:
        step: of this step, from 1 on; a tensor of no dimension where only the device knows it.
    """
    beta1, beta2 = betas
    for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        dtype = accumulation_dtype(exp_avg)
        grad, average, square = (tensor.to(dtype) for tensor in (grad, exp_avg, exp_avg_sq))
        average.lerp_(grad, 1.0 - beta1)
        square.lerp_(grad.square(), 1.0 - beta2)
        first, second = (_bias_correction(beta, step, dtype) for beta in betas)
        denominator = (square / second).sqrt() + eps
        decayed = param.to(dtype) * (1.0 - lr * weight_decay)
        param.copy_(decayed - lr / first * average / denominator)
        exp_avg.copy_(average)
        exp_avg_sq.copy_(square)


def _bias_correction(beta: float, step: int | Tensor, dtype: torch.dtype) -> float | Tensor:
    """1 - beta^step, without the cancellation that a power near 1 brings."""
    if isinstance(step, int):
        return -math.expm1(step * math.log(beta)) if beta else 1.0
    return -torch.expm1(step.to(dtype) * math.log(beta)) if beta else torch.ones_like(step, dtype=dtype)
