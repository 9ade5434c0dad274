"""Linear cross-entropy by chunks of rows, its gradients computed in the forward: what implementations share.

Per chunk of C rows: one GEMM into a buffer of logits [C, V], reused by all chunks; a row pass turns them
into G in place, with the losses and a scale a row, so that scale * G is the gradient of each row's loss
for its logits. The scale, times the upstream gradient, need not touch C x V numbers again: it goes to the
rows of the two GEMMs that give the gradients of the hidden states and of the head. The op holds C x V
numbers instead of N x V, and its backward only scales what the forward computed. With reduction "none" the
upstream gradient is not known in time: the forward keeps nothing and the backward recomputes.

Shapes: N rows, C rows of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, library

from kernels.arguments import require, require_device, require_dtype, require_ids, require_shape
from kernels.counting import ran
from kernels.reference import accumulation_dtype

# float16 is not among them: row sums of e^z and the scales that undo them leave its range.
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")

# Elements of a bf16 product that a CPU casts and adds at once, in its cache: 15 ms (12-22) instead of the
# 47 ms (37-71) of one mixed `+=` (32768 x 384, one thread, medians of 9, interleaved).
ADDED_AT_ONCE = 2**17


class Terms(NamedTuple):
    """What the loss is besides the logits; arguments of `reference.linear_cross_entropy`."""

    softcap: float
    z_loss: float
    ignore_index: int


# (logits of at least C rows, targets [C], terms, whether a gradient is wanted) -> (loss [C], scale [C]),
# both 0 where ignored; the first C rows of logits become G, without a gradient anything.
RowPass = Callable[[Tensor, Tensor, Terms, bool], tuple[Tensor, Tensor]]


def rows_first(hidden_ND: Tensor, num_rows: int, vocab_size: int, terms: Terms) -> Tensor:
    """Room for the logits of so many rows, each row's side by side."""
    return hidden_ND.new_empty(num_rows, vocab_size)


class Chunks(NamedTuple):
    """One implementation: its row pass, how many rows a chunk has for (N, V), and its buffer of logits."""

    implementation: str
    row_pass: RowPass
    num_rows: Callable[[int, int], int]
    new_logits: Callable[[Tensor, int, int, Terms], Tensor] = rows_first  # [C, V] of any strides


class Ops(NamedTuple):
    """The two ops of an implementation, both differentiable."""

    losses: Callable[..., Tensor]
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]


def loss_by_chunks(
    ops: Ops, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, terms: Terms, reduction: str
) -> Tensor:
    """`reference.linear_cross_entropy`, checked arguments included.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
        RuntimeError: for a target outside the vocabulary.
    """
    _check(hidden_ND, weight_VD, targets_N, terms, reduction)
    if reduction == "none" or not torch.is_grad_enabled():
        loss_N = ops.losses(hidden_ND, weight_VD, targets_N, *terms)
        return (
            loss_N if reduction == "none" else loss_N.sum() * _row_weight(targets_N, loss_N, terms, reduction)
        )
    like = hidden_ND.detach().new_empty((), dtype=accumulation_dtype(hidden_ND))
    upstream_N = _row_weight(targets_N, like, terms, reduction).expand(targets_N.shape).contiguous()
    return ops.gradients(hidden_ND, weight_VD, targets_N, upstream_N, *terms)[0]


def _check(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, terms: Terms, reduction: str) -> None:
    require_dtype("hidden_ND", hidden_ND, DTYPES)
    require_shape("hidden_ND", hidden_ND, (None, None))
    require_dtype("weight_VD", weight_VD, DTYPES)
    require_shape("weight_VD", weight_VD, (None, hidden_ND.shape[1]))
    require(weight_VD.shape[0] > 0, "weight_VD", "a vocabulary of 0 tokens")
    require_dtype("targets_N", targets_N, (torch.int64,))
    require_shape("targets_N", targets_N, (hidden_ND.shape[0],))
    for argument, tensor in (("weight_VD", weight_VD), ("targets_N", targets_N)):
        require_device(argument, tensor, hidden_ND)
    require(math.isfinite(terms.softcap) and terms.softcap >= 0.0, "softcap", f"{terms.softcap} is no cap")
    require(math.isfinite(terms.z_loss), "z_loss", f"{terms.z_loss} is not finite")
    require(reduction in REDUCTIONS, "reduction", f"{reduction!r} is none of {', '.join(REDUCTIONS)}")


def _row_weight(targets_N: Tensor, like: Tensor, terms: Terms, reduction: str) -> Tensor:
    """Weight of one counted row: 1 for a sum, 1 / counted rows for a mean."""
    if reduction == "sum":
        return like.new_ones(())
    return (targets_N != terms.ignore_index).sum().clamp_min(1).to(like.dtype).reciprocal()


def define_ops(name: str, chunks: Chunks) -> Ops:
    """Register `NAME_losses` and `NAME_gradients` for an implementation; NAME begins with `speedrun::`."""

    def losses(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        softcap: float,
        z_loss: float,
        ignore_index: int,
    ) -> Tensor:
        terms = Terms(softcap, z_loss, ignore_index)
        return _losses(chunks, hidden_ND, weight_VD, targets_N, terms)

    def gradients(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        upstream_N: Tensor,
        softcap: float,
        z_loss: float,
        ignore_index: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        terms = Terms(softcap, z_loss, ignore_index)
        return _gradients(chunks, hidden_ND, weight_VD, targets_N, upstream_N, terms)

    losses_op = library.custom_op(f"{name}_losses", losses, mutates_args=())
    gradients_op = library.custom_op(f"{name}_gradients", gradients, mutates_args=())

    def recompute(ctx, upstream_N):  # type: ignore[no-untyped-def]
        _, *gradients = gradients_op(*ctx.saved_tensors, upstream_N.contiguous(), *ctx.terms)
        return *gradients, None, None, None, None

    losses_op.register_fake(_fake_losses)
    gradients_op.register_fake(_fake_gradients)
    losses_op.register_autograd(recompute, setup_context=_keep_inputs)
    gradients_op.register_autograd(_scale_gradients, setup_context=_keep_gradients)
    return Ops(losses_op, gradients_op)


def _fake_losses(hidden_ND: Tensor, *_others: object) -> Tensor:
    return hidden_ND.new_empty(hidden_ND.shape[0], dtype=accumulation_dtype(hidden_ND))


def _fake_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, upstream_N: Tensor, *_others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return upstream_N.new_empty(()), torch.empty_like(hidden_ND), torch.empty_like(weight_VD)


def _keep_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden_ND, weight_VD, targets_N, *terms = inputs
    ctx.terms = terms
    ctx.save_for_backward(hidden_ND, weight_VD, targets_N)


def _keep_gradients(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # else torch makes zeros for the outputs without one: of the head's size
    ctx.save_for_backward(output[1], output[2])


def _scale_gradients(ctx, upstream, _grad_hidden, _grad_weight):  # type: ignore[no-untyped-def]
    if upstream is None:  # no one asked for the loss's derivative
        return (None,) * 7
    grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
    return grad_hidden_ND * upstream, grad_weight_VD * upstream, None, None, None, None, None


class _Work(NamedTuple):
    """The head in the compute dtype, the buffer of a chunk's logits, and the rows of each chunk."""

    weight_VD: Tensor
    buffer_CV: Tensor
    slices: list[slice]

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits of these rows, the first of the buffer."""
        return torch.mm(hidden_CD, self.weight_VD.T, out=self.buffer_CV[: hidden_CD.shape[0]])


def _start(chunks: Chunks, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, terms: Terms) -> _Work:
    """Count the call, check the targets, lay out chunks and buffer."""
    ran("linear_cross_entropy", chunks.implementation)
    num_rows, vocab = hidden_ND.shape[0], weight_VD.shape[0]
    require_ids("targets_N", targets_N, vocab, ignored=terms.ignore_index)
    size = chunks.num_rows(num_rows, vocab)
    slices = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    buffer_CV = chunks.new_logits(hidden_ND, size, vocab, terms)
    return _Work(weight_VD.to(hidden_ND.dtype), buffer_CV, slices)


def _losses(chunks: Chunks, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, terms: Terms) -> Tensor:
    work = _start(chunks, hidden_ND, weight_VD, targets_N, terms)
    loss_N = _fake_losses(hidden_ND)
    for rows in work.slices:
        work.logits(hidden_ND[rows])
        loss_N[rows], _ = chunks.row_pass(work.buffer_CV, targets_N[rows], terms, False)
    return loss_N


def _gradients(
    chunks: Chunks,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    upstream_N: Tensor,
    terms: Terms,
) -> tuple[Tensor, Tensor, Tensor]:
    """sum(upstream * loss) and its gradients: of the hidden states and of the head, each in its dtype."""
    work = _start(chunks, hidden_ND, weight_VD, targets_N, terms)
    total = upstream_N.new_zeros(())
    grad_hidden_ND = torch.empty_like(hidden_ND)
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=accumulation_dtype(hidden_ND))
    for rows in work.slices:
        hidden_CD = hidden_ND[rows]
        gradient_CV = work.logits(hidden_CD)
        loss_C, scale_C = chunks.row_pass(work.buffer_CV, targets_N[rows], terms, True)
        total += (loss_C * upstream_N[rows]).sum()
        scale_C1 = (scale_C * upstream_N[rows])[:, None]
        torch.mul(gradient_CV @ work.weight_VD, scale_C1, out=grad_hidden_ND[rows])
        _add_product(grad_weight_VD, gradient_CV.T, (hidden_CD * scale_C1).to(hidden_CD.dtype))
    return total, grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype)


def _add_product(sum_VD: Tensor, gradient_VC: Tensor, hidden_CD: Tensor) -> None:
    """sum += gradient @ hidden; on CUDA bf16 factors are summed in float32 by the GEMM itself."""
    if sum_VD.dtype == hidden_CD.dtype:
        sum_VD.addmm_(gradient_VC, hidden_CD)
    elif sum_VD.is_cuda:
        torch.addmm(sum_VD, gradient_VC, hidden_CD, out_dtype=sum_VD.dtype, out=sum_VD)
    else:
        product_VD = gradient_VC @ hidden_CD
        size = max(ADDED_AT_ONCE // sum_VD.shape[1], 1) if sum_VD.is_cpu else sum_VD.shape[0]
        for part, added in zip(torch.split(sum_VD, size), torch.split(product_VD, size), strict=True):
            part += added.to(part.dtype)
