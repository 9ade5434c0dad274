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
from kernels.compiling import compiled_pass
from kernels.linear_cross_entropy_chunks import Chunks, Terms, define_ops, loss_by_chunks, rows_first
from kernels.reference import accumulation_dtype, softcap_logits

# (logits of at least C rows, C, softcap, whether a gradient is wanted) -> (shift [C], row sums of
# e^(z - shift) [C]); the first C rows become e^(z - shift) times the slope.
Exponentials = Callable[[Tensor, int, float, bool], tuple[Tensor, Tensor]]
# e^z of a capped logit needs no shift while it and its row sums are far from overflow in bf16 and float32.
LARGEST_UNSHIFTED_SOFTCAP = 40.0
# Elements that a pass takes at once, so that they and its temporaries stay in a CPU's cache. Compiled, 512
# rows of 32768 in float32 took 53 ms (45-63) in 32 blocks and 97 ms (87-103) in one (one thread, medians
# of 7).
BLOCK_ELEMENTS = 2**19
BF16_VALUES = 2**16
# Tokens whose e^z are added up before their sums are, vocabulary first: 512 rows of 32768 take
# 11 ms in parts of 32, 15 in parts of 128 to 1024, 31 of 2048, 69 of 4096 (two cores, medians of 11).
SUMMED_AT_ONCE = 32


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


def _exponentials_(logits_CV: Tensor, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    """(shift [C], row sums of e^(z - shift) [C]); the logits become e^(z - shift) times the cap's slope.

    A softcap bounds z, so no running maximum is needed: one pass. With q = 1/(1 + e^(2x/c)): z = c tanh(x/c)
    = c - 2cq and the slope 1 - tanh^2 = 4q(1 - q).
    """
    raw_CV = logits_CV.to(accumulation_dtype(logits_CV))
    if not softcap:
        shift_C = raw_CV.amax(1)
        e_CV = (raw_CV - shift_C[:, None]).exp()
        gradient_CV = e_CV
    elif softcap <= LARGEST_UNSHIFTED_SOFTCAP:
        shift_C = raw_CV.new_zeros(raw_CV.shape[:1])
        q_CV = torch.sigmoid(raw_CV * (-2.0 / softcap))
        e_CV = (softcap - 2.0 * softcap * q_CV).exp()
        gradient_CV = e_CV * (4.0 * q_CV * (1.0 - q_CV))
    else:  # the cap itself is no shift: a row whose logits are all near -softcap would sum to 0
        tanh_CV = torch.tanh(raw_CV / softcap)
        shift_C = softcap * tanh_CV.amax(1)
        e_CV = (softcap * tanh_CV - shift_C[:, None]).exp()
        gradient_CV = e_CV * (1.0 - tanh_CV.square())
    sum_C = e_CV.sum(1)
    if write:
        logits_CV.copy_(gradient_CV)
    return shift_C, sum_C


def _eager_pass(logits_CV: Tensor, num_rows: int, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    blocks = torch.split(logits_CV[:num_rows], _rows_at_once(logits_CV))
    return _joined([_exponentials_(block_CV, softcap, write) for block_CV in blocks])


def _compiled_pass(logits_CV: Tensor, num_rows: int, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    """Whole blocks, used or not, and one grad mode: one compilation."""
    with torch.no_grad():
        if _has_tables(logits_CV.dtype, softcap):
            sum_C = compiled_pass(_look_up_, dynamic=False)(
                logits_CV, *_bf16_tables(softcap, logits_CV.device), write
            )
            return torch.zeros_like(sum_C)[:num_rows], sum_C[:num_rows]
        size = _rows_at_once(logits_CV)
        blocks = torch.split(logits_CV[: -(-num_rows // size) * size], size)
        shift_C, sum_C = _joined([_compiled_block_(block_CV, softcap, write) for block_CV in blocks])
    return shift_C[:num_rows], sum_C[:num_rows]


def _compiled_block_(block_CV: Tensor, softcap: float, write: bool) -> tuple[Tensor, Tensor]:
    """In float32: over bf16 logits in place the compiled pass took 130 ms (116-138) instead of 53."""
    raw_CV = block_CV.to(accumulation_dtype(block_CV))
    shift_C, sum_C = compiled_pass(_exponentials_, dynamic=False)(raw_CV, softcap, write)
    if write and raw_CV is not block_CV:
        block_CV.copy_(raw_CV)
    return shift_C, sum_C


def _look_up_(logits_CV: Tensor, e_of_bits: Tensor, gradient_of_bits: Tensor, write: bool) -> Tensor:
    """Row sums of e^z [C]; bf16 logits become e^z times the cap's slope, both read from tables.

    512 rows of 32768 took 13 ms (12-14), computed anew 28 ms (25-41) at best (two cores, medians of 11).
    """
    bits_CV = logits_CV.view(torch.int16).to(torch.int32) + BF16_VALUES // 2
    e_CV = e_of_bits[bits_CV]
    if logits_CV.stride(1) == 1:
        sum_C = e_CV.sum(1)
    else:
        sum_C = e_CV.T.view(-1, SUMMED_AT_ONCE, e_CV.shape[0]).sum(1).sum(0)
    if write:
        logits_CV.copy_(gradient_of_bits[bits_CV])
    return sum_C


def _has_tables(dtype: torch.dtype, softcap: float) -> bool:
    return dtype == torch.bfloat16 and 0.0 < softcap <= LARGEST_UNSHIFTED_SOFTCAP


@cache
def _bf16_tables(softcap: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(e^z in float32, e^z times the slope in bf16) of each bf16 number, by its bits as a signed integer."""
    bits = torch.arange(-BF16_VALUES // 2, BF16_VALUES // 2, device=device).to(torch.int16)
    gradients_V1 = bits.view(torch.bfloat16).float()[:, None]
    _, e_of_bits = _exponentials_(gradients_V1, softcap, write=True)
    return e_of_bits, gradients_V1[:, 0].bfloat16()


def _rows_at_once(logits_CV: Tensor) -> int:
    """Rows of a block, a power of two, as are a chunk's; there is a reason for blocks on a CPU only."""
    if not logits_CV.is_cpu:
        return logits_CV.shape[0]
    return 1 << (max(BLOCK_ELEMENTS // logits_CV.shape[1], 1).bit_length() - 1)


def _joined(passes: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    shifts, sums = zip(*passes, strict=True)
    return torch.cat(shifts), torch.cat(sums)


def _row_pass(
    exponentials: Exponentials, logits_CV: Tensor, targets_C: Tensor, terms: Terms, write: bool
) -> tuple[Tensor, Tensor]:
    num_rows = targets_C.shape[0]
    counted_C = targets_C != terms.ignore_index
    at_targets = torch.arange(num_rows, device=targets_C.device), targets_C.where(counted_C, 0)
    raw_C = logits_CV[at_targets].to(accumulation_dtype(logits_CV))
    shift_C, sum_C = exponentials(logits_CV, num_rows, terms.softcap, write)
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
        logits_CV[at_targets] = at_target_C.to(logits_CV.dtype)
    return loss_C.where(counted_C, 0.0), (strength_C / sum_C).where(counted_C, 0.0)


def _strength(normaliser_C: Tensor, z_loss: float) -> Tensor:
    """What the z-loss multiplies the softmax by in the gradient: 1 + 2 z_loss log(normaliser); never quite 0.

    It is part of the row's scale, and the target's entry is divided by it.
    """
    strength_C = 1.0 + 2.0 * z_loss * normaliser_C
    smallest = torch.finfo(strength_C.dtype).eps
    return strength_C.where(strength_C.abs() >= smallest, smallest)


def _new_logits(hidden_ND: Tensor, num_rows: int, vocab_size: int, terms: Terms) -> Tensor:
    """Vocabulary first, so that a token's logits lie side by side, where a CPU can read e^z from tables.

    Its bf16 products are faster so: all three of 512 rows, D = 384, V = 32768, took 18 ms instead of 31 (two
    AMX cores, medians of 9), loss and gradients of 4096 rows 346 ms (325-438) instead of 429 (404-554). The
    eager pass, without tables, takes 3 to 10 % longer; it is laid out alike, since it is what is proved. Not
    for odd numbers of rows: torch 2.13's product for the head's gradient then reads past a token's logits.
    """
    whole = hidden_ND.shape[0] % SUMMED_AT_ONCE == 0 and vocab_size % SUMMED_AT_ONCE == 0
    if whole and hidden_ND.is_cpu and _has_tables(hidden_ND.dtype, terms.softcap):
        return hidden_ND.new_empty(vocab_size, num_rows).T
    return rows_first(hidden_ND, num_rows, vocab_size, terms)


def _chunks(exponentials: Exponentials) -> Chunks:
    row_pass = partial(_row_pass, exponentials)
    return Chunks("chunked", row_pass, lambda num_rows, vocab: rows_per_chunk(vocab), _new_logits)


EAGER_OPS = define_ops("speedrun::linear_cross_entropy", _chunks(_eager_pass))
COMPILED_OPS = define_ops("speedrun::linear_cross_entropy_compiled", _chunks(_compiled_pass))
