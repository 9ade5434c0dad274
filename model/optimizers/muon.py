"""The Muon step on a stack of equal matrices: momentum, polar step, NorMuon, cautious weight decay, update.

Shapes: S stacked matrices of M x P.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from kernels.reference import neuron_dim
from model.optimizers.loss_scaler import Skip, unchanged_if


def muon_step_(
    params_SMP: Tensor,
    grads_SMP: Tensor,
    state: dict[str, Tensor],
    kernels: Kernels,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    polar_dtype: torch.dtype,
    constants: dict[str, Any],
    skip: Skip | None = None,
) -> None:
    """One step in place; float32 but for the polar iteration.

    Args:
        state: "momentum" [S, M, P] and, where `beta2` > 0, "second_moment" [S, M, 1] or [S, 1, P].
        lr: already scaled for the shape (`shape_lr_scale`).
        constants: of the group: "beta2", "polar_steps", "polar_norm_scale", "equilibrate", "renormalise".
        skip: whether the device leaves the step out.
    """
    if not state:
        for name, shape in state_shapes(params_SMP[0], constants["beta2"]).items():
            state[name] = params_SMP.new_zeros((len(params_SMP), *shape))
    with unchanged_if(skip, [params_SMP, *state.values()]):
        direction_SMP = kernels.muon_direction(grads_SMP, state["momentum"], momentum, polar_dtype)
        update_SMP = kernels.polar_express(
            direction_SMP, constants["polar_steps"], constants["polar_norm_scale"], constants["equilibrate"]
        )
        kernels.muon_update(
            params_SMP,
            update_SMP,
            state.get("second_moment"),
            lr=lr,
            weight_decay=weight_decay,
            beta2=constants["beta2"],
            renormalise=constants["renormalise"],
        )


def state_shapes(param_MP: Tensor, beta2: float) -> dict[str, tuple[int, int]]:
    """Shape of each state of one matrix."""
    rows, columns = param_MP.shape
    shapes = {"momentum": (rows, columns)}
    if beta2:
        shapes["second_moment"] = (rows, 1) if neuron_dim(param_MP) == -1 else (1, columns)
    return shapes


def shape_lr_scale(rows: int, columns: int) -> float:
    """sqrt(rows / columns) for tall matrices, 1 otherwise: the update's RMS a output then does not fall."""
    return float(max(1.0, rows / columns) ** 0.5)
