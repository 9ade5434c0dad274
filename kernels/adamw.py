"""AdamW by torch's fused step: one pass over parameters, gradients and moments.

Moments in bf16 stall: for a constant squared gradient of 1 and beta2 = 0.995 the average stops at 0.61, and
updates become 1.28x too large. They are taken all the same, of bf16 parameters with bf16 gradients, since
nanochat's embeddings have them; the arithmetic is float32's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.arguments import require, require_device, require_dtype, require_shape
from kernels.counting import ran

PARAMETERS = (torch.float64, torch.float32, torch.bfloat16)
MOMENTS = (torch.float64, torch.float32, torch.bfloat16)


def require_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int | Tensor,
    moments: tuple[torch.dtype, ...],
) -> None:
    """Raise TypeError or ValueError unless these are arguments of `adamw_`; all moments are of one type.

    A step count on the device is not read: the host would wait for it.
    """
    if isinstance(step, Tensor):
        require_shape("step", step, ())
    else:
        require(step >= 1, "step", f"{step}, the first is 1")
    for name, tensors in (("grads", grads), ("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs)):
        require(len(tensors) == len(params), name, f"{len(tensors)} tensors for {len(params)} parameters")
    for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    ):
        allowed = (exp_avgs[0].dtype,) if i else moments
        require_dtype(f"exp_avgs[{i}]", exp_avg, allowed)
        require_dtype(f"exp_avg_sqs[{i}]", exp_avg_sq, (exp_avg.dtype,))
        mixed = (exp_avg.dtype, torch.bfloat16)
        require_dtype(f"params[{i}]", param, mixed)
        require_dtype(f"grads[{i}]", grad, mixed)
        require_device(f"params[{i}]", param, params[0])
        for name, tensor in (("grads", grad), ("exp_avgs", exp_avg), ("exp_avg_sqs", exp_avg_sq)):
            require_shape(f"{name}[{i}]", tensor, param.shape)
            require_device(f"{name}[{i}]", tensor, params[0])


def flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself where it is contiguous and of this type, else a copy that is."""
    return tensor.to(dtype).contiguous()


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
    """One decoupled AdamW step of each parameter, in place. Reference: `reference.adamw_`.

    torch's step wants everything in one type and takes no strides: what is not so (bf16 parameters with
    float32 moments, views) is copied and, where it is changed, copied back. All in bf16, it works in float32
    and rounds once.
    """
    require_adamw(params, grads, exp_avgs, exp_avg_sqs, step, MOMENTS)
    ran("adamw", "fused")
    if not params:
        return
    dtype = exp_avgs[0].dtype
    changed = [*params, *exp_avgs, *exp_avg_sqs]
    work = [flat(tensor, dtype) for tensor in changed]
    count = len(params)
    if isinstance(step, Tensor):
        now = step.to(torch.float32)
    else:
        now = torch.full((), float(step), dtype=torch.float32, device=params[0].device)
    torch._fused_adamw_(
        work[:count],
        [flat(grad, dtype) for grad in grads],
        work[count : 2 * count],
        work[2 * count :],
        [],
        [now] * count,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    for tensor, worked in zip(changed, work, strict=True):
        if worked is not tensor:
            tensor.copy_(worked)
