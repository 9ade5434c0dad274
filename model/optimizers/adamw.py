"""AdamW's state and step for one group: moments in float32 whatever the parameters are, one step count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Kernels


def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    kernels: Kernels,
    group: dict[str, Any],
    *,
    lr: float,
) -> None:
    """One step in place; moments are created at the first.

    Args:
        group: "betas", "eps", "base_weight_decay" and "step", how many steps were taken: counted up here.
    """
    for param, state in zip(params, states, strict=True):
        if not state:
            dtype = torch.promote_types(param.dtype, torch.float32)
            state["exp_avg"] = torch.zeros_like(param, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=dtype)
    group["step"] += 1
    kernels.adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        group["step"],
        lr=lr,
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["base_weight_decay"],
    )
