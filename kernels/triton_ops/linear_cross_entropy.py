"""Soft-capped linear cross-entropy: the row pass over a chunk's logits as one Triton kernel.

The chunks and the gradients' algebra are `kernels.linear_cross_entropy_chunks`'s, and the GEMMs are
torch's. The kernel reads a row of logits block by block and overwrites it, in the same pass, with e^(z -
shift) times the cap's slope, while it sums S of e^(z - shift); then it sets the target's entry to (e_y - S
/ a) slope_y and gives the row the scale a / S, with a = 1 + 2 z_loss log(normaliser). A cap bounds z, so no
shift is needed and the logits are read once; without a cap, or with a large one, a first pass finds the
row's maximum.

Shapes: C rows of a chunk, V vocabulary. z is the capped logit, y the target.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_cross_entropy_chunks import Chunks, Terms, define_ops, loss_by_chunks
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

# e^z of a capped logit and its row sums are far from overflow in bf16 and float32 up to this cap.
LARGEST_UNSHIFTED_SOFTCAP = 40.0
# Elements of a chunk's logits, 0.5 GB in bf16: 8192 rows at V = 32768. Each chunk reads and writes the head's
# gradient once more, 8 V D bytes beside its 6 C V D operations, so C is in the thousands.
CHUNK_ELEMENTS = 2**28

# A row at a time on a GPU; in the interpreter each program costs, however large.
_CONFIGS = {
    0: Config({"ROWS": 32, "BLOCK_V": 64}),
    80: Config({"ROWS": 1, "BLOCK_V": 2048}, num_warps=8, num_stages=1),
}


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float = 0.0,
    reduction: str = "mean",
    z_loss: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:
    """Cross-entropy of `hidden @ weight.T` in nats; reference: `reference.linear_cross_entropy`."""
    terms = Terms(softcap, z_loss, ignore_index)
    return loss_by_chunks(OPS, hidden_ND, weight_VD, targets_N, terms, reduction)


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr, SHIFTED: tl.constexpr):
    """(softcap tanh(x / softcap), its slope), or (x, 1) without a cap; no exponential can overflow."""
    if not CAPPED:
        return x, tl.zeros_like(x) + 1.0
    y = tl.abs(x) * (1.0 / softcap)
    e = tl.exp(-2.0 * y)
    half = 1.0 / (1.0 + e)
    tanh = (1.0 - e) * half
    if SHIFTED:  # the rounding of 1 - e, times a large cap, would show: there the series
        small = tl.minimum(y, 0.1)
        square = small * small
        series = small * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)))
        tanh = tl.where(y < 0.1, series, tanh)
    z = softcap * tl.where(x < 0.0, -tanh, tanh)
    return z, 4.0 * e * half * half


@triton.jit
def _row_maxima(starts, counted, vocab, ROWS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Largest logit of each row; -inf where not counted."""
    largest = tl.full([ROWS, BLOCK_V], float("-inf"), tl.float32)
    for start in range(0, vocab, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = counted[:, None] & (columns < vocab)[None, :]
        x = tl.load(starts[:, None] + columns[None, :], mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, x.to(tl.float32))
    return tl.max(largest, 1)


@triton.jit
def _exponentials(
    starts,
    counted,
    existing,
    vocab,
    shift,
    softcap,
    CAPPED: tl.constexpr,
    SHIFTED: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Row sums of e^(z - shift), which times the slope replaces the logits; zeros where not counted."""
    sums = tl.zeros([ROWS, BLOCK_V], tl.float32)
    for start in range(0, vocab, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        entries = starts[:, None] + columns[None, :]
        inside = counted[:, None] & (columns < vocab)[None, :]
        z, slope = _capped(tl.load(entries, mask=inside, other=0.0).to(tl.float32), softcap, CAPPED, SHIFTED)
        e = tl.exp(
            tl.where(inside, z - shift[:, None], float("-inf"))
        )  # masked after the cap: it bounds -inf too
        sums += e
        if WRITE:
            written = existing[:, None] & (columns < vocab)[None, :]
            tl.store(entries, (e * slope).to(starts.dtype.element_ty), mask=written)
    return tl.sum(sums, 1)


@triton.jit
def _rows_kernel(
    logits_ptr,
    targets_ptr,
    loss_ptr,
    scale_ptr,
    num_rows,
    vocab,
    row_stride,
    target_stride,
    softcap,
    z_loss,
    ignore_index,
    CAPPED: tl.constexpr,
    SHIFTED: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    existing = rows < num_rows
    targets = tl.load(targets_ptr + rows * target_stride, mask=existing, other=-1)
    counted = existing & (targets != ignore_index) & (targets >= 0) & (targets < vocab)
    starts = logits_ptr + rows * row_stride
    raw = tl.load(starts + targets, mask=counted, other=0.0).to(tl.float32)
    z, slope = _capped(raw, softcap, CAPPED, SHIFTED)
    shift = tl.zeros([ROWS], tl.float32)
    if SHIFTED:
        largest = _row_maxima(starts, counted, vocab, ROWS, BLOCK_V)
        shift, _ = _capped(tl.where(counted, largest, 0.0), softcap, CAPPED, SHIFTED)
    tl.debug_barrier()  # every thread has read the target's logit: any of them may overwrite it
    sums = _exponentials(
        starts, counted, existing, vocab, shift, softcap, CAPPED, SHIFTED, WRITE, ROWS, BLOCK_V
    )
    total = tl.where(counted, sums, 1.0)
    loss = tl.log(total) - (z - shift)
    strength = tl.zeros_like(total) + 1.0
    if Z_LOSS:
        normaliser = tl.log(total) + shift
        loss += z_loss * normaliser * normaliser
        strength = 1.0 + 2.0 * z_loss * normaliser
        strength = tl.where(tl.abs(strength) < 1e-7, 1e-7, strength)  # the target's entry is divided by it
    tl.store(loss_ptr + rows, tl.where(counted, loss, 0.0), mask=existing)
    tl.store(scale_ptr + rows, tl.where(counted, strength / total, 0.0), mask=existing)
    if WRITE:
        at_target = (tl.exp(z - shift) - total / strength) * slope
        tl.debug_barrier()  # after the thread that wrote the target's column
        tl.store(starts + targets, at_target.to(logits_ptr.dtype.element_ty), mask=counted)


def _variant(terms: Terms, write: bool) -> dict[str, bool]:
    """The kernel's constexprs."""
    return {
        "CAPPED": terms.softcap > 0.0,
        "SHIFTED": not 0.0 < terms.softcap <= LARGEST_UNSHIFTED_SOFTCAP,
        "Z_LOSS": terms.z_loss != 0.0,
        "WRITE": write,
    }


def _row_pass(logits_CV: Tensor, targets_C: Tensor, terms: Terms, write: bool) -> tuple[Tensor, Tensor]:
    loss_C, scale_C = logits_CV.new_empty(2, targets_C.shape[0], dtype=torch.float32).unbind(0)
    sizes = (*logits_CV[: targets_C.shape[0]].shape, logits_CV.stride(0), targets_C.stride(0))
    config = _config(architecture(logits_CV.device))
    launch(
        _rows_kernel,
        (triton.cdiv(targets_C.shape[0], config.blocks["ROWS"]),),
        (logits_CV, targets_C, loss_C, scale_C, *sizes, *terms),
        (0, 2, 3),
        config,
        **_variant(terms, write),
    )
    return loss_C, scale_C


def _config(arch: int) -> Config:
    return _CONFIGS[max(known for known in _CONFIGS if known <= arch)]


def _num_rows(num_rows: int, vocab: int) -> int:
    return max(min(CHUNK_ELEMENTS // vocab, num_rows), 1)


OPS = define_ops("speedrun::linear_cross_entropy_triton", Chunks("triton", _row_pass, _num_rows))


def specimens(arch: int) -> list[Specimen]:
    """The pass over a chunk of 8192 rows of a vocabulary of 32768, in its variants."""
    capped, with_z_loss, uncapped, large = ((15.0, 0.0), (15.0, 1e-4), (0.0, 1e-4), (60.0, 1e-4))
    variants = [("bf16", terms, True) for terms in (capped, with_z_loss, uncapped, large)]
    variants += [("fp32", terms, True) for terms in (capped, uncapped)]
    variants += [("bf16", terms, False) for terms in (capped, uncapped)]
    return [_specimen(arch, dtype, _variant(Terms(*terms, -1), write)) for dtype, terms, write in variants]


def _specimen(arch: int, dtype: str, variant: dict[str, bool]) -> Specimen:
    pointers = {"logits_ptr": f"*{dtype}", "targets_ptr": "*i64", "loss_ptr": "*fp32", "scale_ptr": "*fp32"}
    sizes = {"num_rows": "i32", "vocab": "i32", "row_stride": "i32"}
    scalars = {"softcap": "fp32", "z_loss": "fp32", "ignore_index": "i32"}
    # A launch compiles a stride of 1 in.
    constants = variant | {"target_stride": 1}
    return Specimen(
        _rows_kernel, pointers | sizes | scalars, constants, _config(arch), (*pointers, *sizes), False
    )
