"""The Muon step on a stack of equal matrices: momentum, polar step, NorMuon, cautious weight decay, update.

Shapes: S stacked matrices of M x P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.polar_express import polar_express


def muon_step_(
    params_SMP: Tensor,
    grads_SMP: Tensor,
    state: dict[str, Tensor],
    *,
    lr: float,
    momentum: float,
    beta2: float,
    weight_decay: float,
    polar_steps: int,
    polar_norm_scale: float,
    polar_dtype: torch.dtype,
) -> None:
    """One step in place; float32 but for the polar iteration. `grads_SMP` is overwritten.

    Args:
        lr: already scaled for the shape (`shape_lr_scale`).
        state: "momentum" [S, M, P] and, where `beta2` > 0, "second_moment" [S, M, 1] or [S, 1, P].
    """
    if not state:
        state["momentum"] = torch.zeros_like(params_SMP)
        if beta2:
            per_neuron = params_SMP.mean(_neuron_dim(params_SMP), keepdim=True)
            state["second_moment"] = torch.zeros_like(per_neuron)
    state["momentum"].lerp_(grads_SMP, 1.0 - momentum)
    nesterov_SMP = grads_SMP.lerp_(state["momentum"], momentum)
    update_SMP = polar_express(nesterov_SMP.to(polar_dtype), polar_steps, polar_norm_scale)
    update_SMP = update_SMP.to(params_SMP.dtype)
    if beta2:
        update_SMP = normuon(update_SMP, state["second_moment"], beta2)
    cautious_update_(params_SMP, update_SMP, lr, weight_decay)


def _neuron_dim(matrix_SMP: Tensor) -> int:
    """The dimension averaged by NorMuon: inputs of each output where M >= P, else outputs of each input."""
    return -1 if matrix_SMP.shape[-2] >= matrix_SMP.shape[-1] else -2


def normuon(update_SMP: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """Divide each neuron's update by the running RMS of its updates, then restore the Frobenius norm.

    NorMuon, arXiv 2510.05491; `second_moment` is updated in place.
    """
    dim = _neuron_dim(update_SMP)
    mean_square = update_SMP.square().mean(dim, keepdim=True)
    second_moment.lerp_(mean_square, 1.0 - beta2)
    inverse_rms = second_moment.clamp_min(1e-10).rsqrt()
    norm_before = mean_square.sum((-2, -1), keepdim=True).sqrt()
    norm_after = (mean_square * inverse_rms.square()).sum((-2, -1), keepdim=True).sqrt()
    return update_SMP * (inverse_rms * (norm_before / norm_after.clamp_min(1e-10)))


def cautious_update_(params_SMP: Tensor, update_SMP: Tensor, lr: float, weight_decay: float) -> None:
    """params -= lr * update; weight decay only where both agree in sign (arXiv 2411.16085)."""
    if weight_decay:
        agree_SMP = (update_SMP * params_SMP) >= 0
        params_SMP.addcmul_(params_SMP, agree_SMP, value=-lr * weight_decay)
    params_SMP.add_(update_SMP, alpha=-lr)


def shape_lr_scale(rows: int, columns: int) -> float:
    """sqrt(rows / columns) for tall matrices, 1 otherwise: the update's RMS a output then does not fall."""
    return float(max(1.0, rows / columns) ** 0.5)
