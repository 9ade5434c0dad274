"""Eager references: the oracle of the tests, the baseline of the benchmarks, and the meaning of every op.

Shapes: B batch, T tokens of a row, N = B*T rows, D model width, H query heads, G key/value heads, K head dim,
V vocabulary, M x P a matrix, S stacked matrices. Written to be read, in any dtype, float64 included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Polar Express, 5 iterations, safety factor 2e-2, cushion 2 (Amsel et al., arXiv 2505.16932, the coefficients
# nanochat uses).
POLAR_EXPRESS_COEFFICIENTS: tuple[tuple[float, float, float], ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def embedding(weight_VD: Tensor, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the table in the compute dtype, [B, T, D]."""
    return F.embedding(tokens_BT, weight_VD).to(dtype)


def softcap_logits(logits_NV: Tensor, softcap: float) -> Tensor:
    """`softcap * tanh(logits / softcap)`; 0 leaves them as they are."""
    return softcap * torch.tanh(logits_NV / softcap) if softcap else logits_NV


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -1,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T`, soft-capped, in nats.

    Args:
        hidden_ND: final hidden states.
        weight_VD: head weights of the real vocabulary, cast to the dtype of `hidden_ND`.
        targets_N: token ids; rows with `ignore_index` lose nothing and get no gradient.
        reduction: "mean" over the counted rows (0 when there are none), "sum", or "none" ([N]).
    """
    logits_NV = softcap_logits(
        (hidden_ND @ weight_VD.to(hidden_ND.dtype).T).to(accumulation_dtype(hidden_ND)), softcap
    )
    loss_N = F.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index, reduction="none")
    if reduction == "none":
        return loss_N
    total = loss_N.sum()
    return total if reduction == "sum" else total / (targets_N != ignore_index).sum().clamp_min(1)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 (the oracle), float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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


def polar_express(gradient_SMP: Tensor, steps: int = 5, norm_scale: float = 1.01) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: singular values in [0.86, 1.14] (arXiv 2505.16932)."""
    X: Tensor = gradient_SMP / (gradient_SMP.norm(dim=(-2, -1), keepdim=True) * norm_scale + 1e-6)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for a, b, c in POLAR_EXPRESS_COEFFICIENTS[:steps]:
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2."""
    return x.relu().square()
