"""Soft-capped linear cross-entropy in plain torch; the logits never exist whole.

The chunks and the gradients' algebra are `kernels.linear_cross_entropy_chunks`'s. Here the row pass: logits
become e^(z - shift) times the slope of the cap, with row sums S of e^(z - shift); the target's entry is set
to (e_y - S / a) slope_y, and a / S is the row's scale, with a = 1 + 2 z_loss log(normaliser).

Shapes: C rows of a chunk, V vocabulary. z is the capped logit, y the target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from kernels.choices import rows_per_chunk
from kernels.linear_cross_entropy_chunks import Chunks, Terms, define_ops, loss_by_chunks
from kernels.reference import accumulation_dtype, softcap_logits

# e^z of a capped logit needs no shift while it and its row sums are far from overflow in bf16 and float32.
LARGEST_UNSHIFTED_SOFTCAP = 40.0
# (buffers, C, softcap, whether a gradient is wanted) -> (shift [C], row sums of e^(z - shift) [C]); the last
# buffer becomes e^(z - shift) times the slope.
Exponentials = Callable[[Tensor, int, float, bool], tuple[Tensor, Tensor]]
# Elements that an eager pass takes at once: its temporaries stay in a CPU's cache.
BLOCK_ELEMENTS = 2**18


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
    compiled: bool = False,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T` in nats; reference: `reference.linear_cross_entropy`.

    Args:
        weight_VD: master of the head, rows of the real vocabulary only; its gradient is summed in float32.
        compiled: whether the pass over the logits goes through torch.compile.
    """
    terms = Terms(softcap, z_loss, ignore_index)
    ops = COMPILED_OPS if compiled else EAGER_OPS
    return loss_by_chunks(ops, hidden_ND, weight_VD, targets_N, terms, reduction)


def _exponentials(
    logits_CV: Tensor, gradient_CV: Tensor, softcap: float, write: bool
) -> tuple[Tensor, Tensor]:
    """(shift [C], row sums of e^(z - shift) [C]); `gradient_CV` becomes e^(z - shift) times the cap's slope.

    A softcap bounds z, so no running maximum is needed: one pass. With q = 1/(1 + e^(2x/c)): z = c tanh(x/c)
    = c - 2cq and the slope 1 - tanh^2 = 4q(1 - q).
    """
    raw_CV = logits_CV.to(accumulation_dtype(logits_CV))
    if not softcap:
        shift_C = raw_CV.amax(1)
        e_CV = (raw_CV - shift_C[:, None]).exp()
        product_CV = e_CV
    elif softcap <= LARGEST_UNSHIFTED_SOFTCAP:
        shift_C = raw_CV.new_zeros(raw_CV.shape[:1])
        q_CV = torch.sigmoid(raw_CV * (-2.0 / softcap))
        e_CV = (softcap - 2.0 * softcap * q_CV).exp()
        product_CV = e_CV * (4.0 * q_CV * (1.0 - q_CV))
    else:  # the cap itself is no shift: a row whose logits are all near -softcap would sum to 0
        tanh_CV = torch.tanh(raw_CV / softcap)
        shift_C = softcap * tanh_CV.amax(1)
        e_CV = (softcap * tanh_CV - shift_C[:, None]).exp()
        product_CV = e_CV * (1.0 - tanh_CV.square())
    sum_C = e_CV.sum(1)
    if write:
        gradient_CV.copy_(product_CV)
    return shift_C, sum_C


@cache
def _compiled_exponentials() -> Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]:
    return torch.compile(_exponentials, dynamic=False, fullgraph=True)


def _compiled_pass(buffers: Tensor, num_rows: int, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    """All rows of the buffers, used or not, and one grad mode: one compilation.

    From one buffer to the other: in place, Inductor would write e^(z - shift) and read it again for the sum.
    """
    with torch.no_grad():
        shift_C, sum_C = _compiled_exponentials()(buffers[0], buffers[1], softcap, write)
    return shift_C[:num_rows], sum_C[:num_rows]


def _eager_pass(buffers: Tensor, num_rows: int, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    """In place, block by block."""
    shift_C, sum_C = buffers.new_empty(2, num_rows, dtype=accumulation_dtype(buffers)).unbind(0)
    size = max(BLOCK_ELEMENTS // buffers.shape[2], 1)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        block = buffers[0, rows]
        shift_C[rows], sum_C[rows] = _exponentials(block, block, softcap, write)
    return shift_C, sum_C


def _row_pass(
    exponentials: Exponentials, buffers: Tensor, targets_C: Tensor, terms: Terms, write: bool
) -> tuple[Tensor, Tensor]:
    num_rows = targets_C.shape[0]
    counted_C = targets_C != terms.ignore_index
    at_targets = torch.arange(num_rows, device=targets_C.device), targets_C.where(counted_C, 0)
    raw_C = buffers[0][at_targets].to(accumulation_dtype(buffers))
    shift_C, sum_C = exponentials(buffers, num_rows, terms.softcap, write)
    z_C = softcap_logits(raw_C, terms.softcap)
    loss_C = sum_C.log() - (z_C - shift_C)
    strength_C = torch.ones_like(loss_C)
    if terms.z_loss:
        normaliser_C = sum_C.log() + shift_C
        loss_C += terms.z_loss * normaliser_C.square()
        strength_C = _strength(normaliser_C, terms.z_loss)
    if write:
        slope_C = 1.0 - torch.tanh(raw_C / terms.softcap).square() if terms.softcap else 1.0
        at_target_C = ((z_C - shift_C).exp() - sum_C / strength_C) * slope_C
        # Not scatter_, which copies a bf16 matrix whole: 72 ms instead of 0.01 (512 x 32768, one thread).
        buffers[-1][at_targets] = at_target_C.to(buffers.dtype)
    return loss_C.where(counted_C, 0.0), (strength_C / sum_C).where(counted_C, 0.0)


def _strength(normaliser_C: Tensor, z_loss: float) -> Tensor:
    """What the z-loss multiplies the softmax by in the gradient: 1 + 2 z_loss log(normaliser); never quite 0.

    It is part of the row's scale, and the target's entry is divided by it.
    """
    strength_C = 1.0 + 2.0 * z_loss * normaliser_C
    smallest = torch.finfo(strength_C.dtype).eps
    return strength_C.where(strength_C.abs() >= smallest, smallest)


def _chunks(exponentials: Exponentials, num_buffers: int) -> Chunks:
    row_pass = partial(_row_pass, exponentials)
    return Chunks("chunked", row_pass, lambda num_rows, vocab: rows_per_chunk(vocab), num_buffers)


EAGER_OPS = define_ops("linear_cross_entropy", _chunks(_eager_pass, 1))
COMPILED_OPS = define_ops("linear_cross_entropy_compiled", _chunks(_compiled_pass, 2))
