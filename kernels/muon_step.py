"""What the Muon step does before and after the polar step, with few passes and few temporaries.

All that Muon+ and NorMuon compute follows from one number a neuron, the sum of squares of its update; so the
update is read twice, once for those sums and once to be applied. What is done in elementary steps is done to
a few matrices at a time: what lies between them then stays in the cache.

Compiled, the direction is one pass, cast included (4.5 ms instead of 9.2 at d6, two cores, medians of 17).
The update is applied in one pass that leaves the same bits (`_apply_`), and its norms are taken as it is
read, columns side by side: torch casts the whole first and adds a column's numbers one at a time. All of
`muon_update_` at d6 took 15 ms instead of 56, without its levers 8 instead of 12 (one thread of a busy
machine, processor time, the least of 20).

Shapes: S stacked matrices of M x P; a neuron is a row where M >= P, else a column (`reference.neuron_dim`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.arguments import require_device, require_dtype, require_shape
from kernels.compiling import compiled_pass, is_worth_compiling
from kernels.counting import ran
from kernels.reference import SMALLEST_NORM, SMALLEST_SECOND_MOMENT, neuron_dim

FLOATS = (torch.float64, torch.float32, torch.bfloat16)
MASTERS = (torch.float64, torch.float32)
# 1 MB of float32 for each of the two temporaries: half of the second-level cache of a core.
CHUNK_ELEMENTS = 2**18
# Partial sums in which torch 2.13 adds up a row's squares in float32, whatever the processor's vectors: the
# same order leaves the same bits.
LANES = 8


def require_direction(grads_SMP: Tensor, momentum_SMP: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError or ValueError unless these are arguments of `muon_direction_`."""
    require_dtype("grads_SMP", grads_SMP, dtypes)
    require_shape("grads_SMP", grads_SMP, (None, None, None))
    require_dtype("momentum_SMP", momentum_SMP, (grads_SMP.dtype,))
    require_shape("momentum_SMP", momentum_SMP, grads_SMP.shape)
    require_device("momentum_SMP", momentum_SMP, grads_SMP)


def muon_direction_(
    grads_SMP: Tensor,
    momentum_SMP: Tensor,
    momentum: float,
    dtype: torch.dtype | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Nesterov momentum; `momentum_SMP` is updated. Reference: `reference.muon_direction_`.

    Args:
        compiled: whether all of it is one pass of torch.compile, which leaves the same bits.
    """
    require_direction(grads_SMP, momentum_SMP, FLOATS)
    ran("muon_direction", "in-place")
    if not (compiled and grads_SMP.dtype in MASTERS and is_worth_compiling(grads_SMP, momentum_SMP)):
        momentum_SMP.lerp_(grads_SMP, 1.0 - momentum)
        return grads_SMP.lerp(momentum_SMP, momentum).to(dtype)
    rest = 1.0 - momentum
    numbers = (grads_SMP.new_tensor(number) for number in (rest, momentum))
    flat = (grads_SMP.flatten(), momentum_SMP.flatten())  # one compilation for all shapes
    direction: Tensor = compiled_pass(_direction_)(
        *flat, *numbers, rest < 0.5, momentum < 0.5, dtype or grads_SMP.dtype
    )
    increment_version(momentum_SMP)
    return direction.view(grads_SMP.shape)


def _direction_(
    grads: Tensor,
    memory: Tensor,
    rest: Tensor,
    momentum: Tensor,
    is_rest_small: bool,
    is_momentum_small: bool,
    dtype: torch.dtype,
) -> Tensor:
    """All of it for the compiler, to the bits of `lerp` where products are contracted."""
    averaged = _lerp(memory, grads, rest, is_rest_small)
    memory.copy_(averaged)
    return _lerp(grads, averaged, momentum, is_momentum_small).to(dtype)


def _lerp(start: Tensor, end: Tensor, weight: Tensor, is_small: bool) -> Tensor:
    """torch's: from the nearer end."""
    return start + weight * (end - start) if is_small else end + (weight - 1.0) * (end - start)


def require_update(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    masters: tuple[torch.dtype, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raise TypeError or ValueError unless these are arguments of `muon_update_`."""
    require_dtype("params_SMP", params_SMP, masters)
    require_shape("params_SMP", params_SMP, (None, None, None))
    require_dtype("update_SMP", update_SMP, dtypes)
    require_shape("update_SMP", update_SMP, params_SMP.shape)
    require_device("update_SMP", update_SMP, params_SMP)
    if second_moment is not None:
        require_dtype("second_moment", second_moment, (params_SMP.dtype,))
        averaged = list(params_SMP.shape)
        averaged[neuron_dim(params_SMP)] = 1
        require_shape("second_moment", second_moment, averaged)
        require_device("second_moment", second_moment, params_SMP)


def muon_update_(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    renormalise: bool = False,
    compiled: bool = False,
) -> None:
    """Muon+, NorMuon, cautious decay and the update, in place. Reference: `reference.muon_update_`.

    Parameters and second moment are float32 (or float64), the update of any type.

    Args:
        compiled: whether the passes over the update go through torch.compile.
    """
    require_update(params_SMP, update_SMP, second_moment, MASTERS, FLOATS)
    ran("muon_update", "in-place")
    compiled = compiled and is_worth_compiling(params_SMP, update_SMP)
    factor = neuron_factor_(params_SMP, update_SMP, second_moment, beta2, renormalise, compiled)
    if compiled:
        _apply_compiled_(params_SMP, update_SMP, factor, -lr * weight_decay, -lr)
        return
    for params, update, *factors in _chunks(params_SMP, update_SMP, *([] if factor is None else [factor])):
        update = update.to(params.dtype)
        update = update * factors[0] if factors else update
        if weight_decay:
            agree = (update * params).ge_(0.0)  # of the update's type: a bool would cost a conversion
            params.addcmul_(params, agree, value=-lr * weight_decay)
        params.add_(update, alpha=-lr)


def _apply_(params: Tensor, update: Tensor, factor: Tensor | None, decay: Tensor, step: Tensor) -> None:
    """The chunks' elementary steps in one, for the compiler.

    `addcmul_` and `add_` round a product and a sum once; so does this where the compiler contracts them.
    """
    update = update.to(params.dtype)
    update = update if factor is None else update * factor
    decayed = params + decay * params * (update * params >= 0.0)
    params.copy_(decayed + step * update)


def _apply_compiled_(
    params_SMP: Tensor, update_SMP: Tensor, factor: Tensor | None, decay: float, step: float
) -> None:
    """Compiled as few times as possible: for numbers of any value, and for rows of any stack alike."""
    stacks: list[Tensor | None] = [params_SMP, update_SMP, factor]
    if factor is None or neuron_dim(params_SMP) == -1:
        stacks = [None if stack is None else stack.flatten(0, 1) for stack in stacks]
    numbers = (params_SMP.new_tensor(number) for number in (decay, step))
    compiled_pass(_apply_)(*stacks, *numbers)
    increment_version(params_SMP)


def neuron_factor_(
    params_SMP: Tensor,
    update_SMP: Tensor,
    second_moment: Tensor | None,
    beta2: float,
    renormalise: bool,
    compiled: bool = False,
) -> Tensor | None:
    """What each neuron's update is multiplied by, shaped like the second moment; that is updated."""
    if second_moment is None and not renormalise:
        return None
    dim = neuron_dim(update_SMP)
    squares = _neuron_norms(update_SMP, dim, params_SMP.dtype, compiled).square_()
    norm_S11 = squares.sum((-2, -1), keepdim=True).sqrt()
    factor = torch.ones_like(norm_S11)
    if renormalise:
        factor = min(update_SMP.shape[-2:]) ** 0.5 / norm_S11.clamp_min(SMALLEST_NORM)
        squares.mul_(factor.square())
        norm_S11 = norm_S11 * factor
    if second_moment is None:
        return factor.expand_as(squares).contiguous()
    second_moment.lerp_(squares / update_SMP.shape[dim], 1.0 - beta2)
    inverse_rms = second_moment.clamp_min(SMALLEST_SECOND_MOMENT).rsqrt_()
    scaled_norm_S11 = squares.mul_(inverse_rms.square()).sum((-2, -1), keepdim=True).sqrt()
    return inverse_rms.mul_(factor * (norm_S11 / scaled_norm_S11.clamp_min(SMALLEST_SECOND_MOMENT)))


def _neuron_norms(update_SMP: Tensor, dim: int, dtype: torch.dtype, compiled: bool) -> Tensor:
    """Norms along `dim`, which is kept."""
    norms: Tensor
    if compiled and dim == -2:
        norms = compiled_pass(_column_norms)(update_SMP, dtype)
        return norms
    if compiled and update_SMP.shape[-1] % LANES == 0:
        sums_NL = compiled_pass(_lane_sums)(update_SMP.flatten(0, 1), dtype)
        # Lane by lane here: for the compiler that is 8 slices of a dynamic shape, 1.2 s of each start. The
        # root is taken in float64, so that it is the nearest: torch's float32 root, MKL's, often is not.
        first, *others = sums_NL.unbind(1)
        root_N: Tensor = sum(others, start=first).double().sqrt().to(dtype)
        return root_N.view(*update_SMP.shape[:-1], 1)
    # In chunks, since the whole would be cast first.
    parts = [torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype) for (x,) in _chunks(update_SMP)]
    return torch.cat(parts)


def _column_norms(update_SMP: Tensor, dtype: torch.dtype) -> Tensor:
    return update_SMP.to(dtype).square().sum(-2, keepdim=True).sqrt()


def _lane_sums(update_NP: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of squares of every LANES-th number of a row, [N, LANES]."""
    return update_NP.view(-1, update_NP.shape[1] // LANES, LANES).to(dtype).square().sum(1)


def _chunks(*stacks: Tensor) -> zip[tuple[Tensor, ...]]:
    """The stacks cut alike, a few matrices a piece."""
    matrices = max(CHUNK_ELEMENTS // max(stacks[0][0].numel(), 1), 1) if stacks[0].shape[0] else 1
    return zip(*(torch.split(stack, matrices) for stack in stacks), strict=True)
