"""AdamW's state and step for one group: moments of the parameter's own type, one step count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Kernels
from model.optimizers.loss_scaler import Skip, unchanged_if


def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    kernels: Kernels,
    group: dict[str, Any],
    *,
    lr: float,
    skip: Skip | None = None,
) -> None:
    """One step in place; moments are created at the first.

    Args:
        group: "betas", "eps", "base_weight_decay" and "step", how many steps were taken or skipped: counted
            up here.
        skip: whether the device leaves the step out; parameters are then taken one by one, so that what is
            kept in case of it is no larger than one of them and its moments.
    """
    for param, state in zip(params, states, strict=True):
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
    group["step"] += 1
    step = group["step"] if skip is None else group["step"] - skip.before
    first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    for some in [slice(None)] if skip is None else [slice(i, i + 1) for i in range(len(params))]:
        with unchanged_if(skip, [*params[some], *first[some], *second[some]]):
            kernels.adamw(
                params[some],
                grads[some],
                first[some],
                second[some],
                step,
                lr=lr,
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["base_weight_decay"],
            )
