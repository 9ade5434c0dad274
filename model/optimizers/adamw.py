"""AdamW on float32 masters with float32 moments, by torch's fused multi-tensor step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Moments in bf16 stall: for a constant squared gradient of 1 and beta2 = 0.995 the average stops at 0.61, and
# updates become 1.28x too large. So masters and moments are float32 everywhere.


def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One decoupled AdamW step in place (arXiv 1711.05101); states are created at the first step."""
    for param, state in zip(params, states, strict=True):
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
    adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
