"""AdamW of all parameters in one launch over a table of pointers.

A row of the table: the addresses of parameter, gradient and both moments, the number of elements, and the
first program that works on it; a program finds its row by comparing its number with all of those. Element
types are no part of an address, so the first tensor of each kind is passed too: a launch for each combination
of types (bf16 and float32 parameters, say). One flat index serves all four tensors; what is not contiguous is
copied and, where it is changed, copied back.

Shapes: R rows of the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from kernels.adamw import flat, require_adamw
from kernels.counting import ran
from kernels.triton_ops.launch import Config, Specimen, architecture, launch

# 28 bytes an element and four roots or quotients: bound by memory; 8 elements a thread are two 16-byte loads.
_CONFIG = {arch: Config({"BLOCK": 2048}, num_warps=8) for arch in (80, 89, 90, 100)}
_CONFIG[0] = Config({"BLOCK": 1024})
ALIGNMENT = 16  # of addresses in bytes and of sizes in elements, for loads of 16 bytes


@triton.jit
def _adamw(p_like, g_like, m_like, v_like, table_ptr, num_rows, rest1, rest2, scale2, rate, decay, eps,
           ALIGNED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One step of one block. `scale2` is 1 / (1 - beta2^step), `rate` is lr / (1 - beta1^step)."""
    index = tl.arange(0, ROWS)
    firsts = tl.load(table_ptr + index * 6 + 5, mask=index < num_rows, other=2**62)
    program = tl.program_id(0)
    row_ptr = table_ptr + (tl.sum((firsts <= program).to(tl.int32), 0) - 1) * 6
    p_ptr = tl.load(row_ptr).to(tl.pointer_type(p_like.dtype.element_ty))
    g_ptr = tl.load(row_ptr + 1).to(tl.pointer_type(g_like.dtype.element_ty))
    m_ptr = tl.load(row_ptr + 2).to(tl.pointer_type(m_like.dtype.element_ty))
    v_ptr = tl.load(row_ptr + 3).to(tl.pointer_type(v_like.dtype.element_ty))
    numel = tl.load(row_ptr + 4)
    if ALIGNED:
        numel = tl.multiple_of(numel, 16)
        p_ptr, g_ptr = tl.multiple_of(p_ptr, 16), tl.multiple_of(g_ptr, 16)
        m_ptr, v_ptr = tl.multiple_of(m_ptr, 16), tl.multiple_of(v_ptr, 16)
    at = (program - tl.load(row_ptr + 5)) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    p = tl.load(p_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.where(rest1 < 0.5, m + rest1 * (g - m), g - (g - m) * (1.0 - rest1))
    v = tl.where(rest2 < 0.5, v + rest2 * (g * g - v), g * g - (g * g - v) * (1.0 - rest2))
    p = p * decay - rate * tl.div_rn(m, tl.sqrt_rn(v * scale2) + eps)
    tl.store(m_ptr + at, m.to(m_like.dtype.element_ty), mask=inside)
    tl.store(v_ptr + at, v.to(v_like.dtype.element_ty), mask=inside)
    tl.store(p_ptr + at, p.to(p_like.dtype.element_ty), mask=inside)


def _table(rows: list[tuple[Tensor, ...]], block: int) -> tuple[Tensor, int, bool]:
    """(the table [R, 6], number of programs, whether every address and size is aligned)."""
    entries, programs = [], 0
    for row in rows:
        entries.append([*(tensor.data_ptr() for tensor in row), row[0].numel(), programs])
        programs += triton.cdiv(row[0].numel(), block)
    aligned = all(number % ALIGNMENT == 0 for entry in entries for number in entry[:5])
    return torch.tensor(entries, dtype=torch.int64).to(rows[0][0].device), programs, aligned


def _step_(rows: list[tuple[Tensor, ...]], numbers: tuple[float, ...]) -> None:
    """A step of (parameter, gradient, both moments), each of one type in all rows and contiguous."""
    config = _CONFIG[architecture(rows[0][0].device)]
    table, programs, aligned = _table(rows, config.blocks["BLOCK"])
    # `launch` cannot see that the kernel writes through the table; nothing is copied, so nothing is lost.
    arguments = (*rows[0], table, len(rows), *numbers)
    padded = triton.next_power_of_2(len(rows))
    launch(_adamw, (programs,), arguments, (), config, ALIGNED=aligned, ROWS=padded)


@library.custom_op("speedrun::adamw_", mutates_args=("params", "exp_avgs", "exp_avg_sqs"))
def _adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    ran("adamw", "triton")
    rate, scale2 = lr / (1.0 - beta1**step), 1.0 / (1.0 - beta2**step)
    numbers = (1.0 - beta1, 1.0 - beta2, scale2, rate, 1.0 - lr * weight_decay, float(eps))
    groups: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    back: list[tuple[Tensor, Tensor]] = []
    for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if not tensors[0].numel():
            continue
        # The interpreter reads bf16 through a pointer well but stores it truncated: there it is widened.
        row = tuple(flat(x, x.dtype if x.is_cuda else torch.float32) for x in tensors)
        back += [(old, new) for i, (old, new) in enumerate(zip(tensors, row, strict=True)) if i != 1]
        groups.setdefault(tuple(x.dtype for x in row), []).append(row)
    for rows in groups.values():
        _step_(rows, numbers)
    for old, new in back:
        if new is not old:
            old.copy_(new)


@_adamw_.register_fake
def _(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    return None


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

    Moments are float32, parameters and gradients float32 or bf16, or all is bf16; the step count is the
    host's.
    """
    if isinstance(step, Tensor):
        raise TypeError("step: a tensor, expected a number: bias corrections are computed on the host")
    require_adamw(params, grads, exp_avgs, exp_avg_sqs, step, (torch.float32, torch.bfloat16))
    tensors = (list(params), list(grads), list(exp_avgs), list(exp_avg_sqs))
    _adamw_(*tensors, step, lr, *betas, eps, weight_decay)


def specimens(arch: int) -> list[Specimen]:
    """Float32 and bf16 parameters, and bf16 ones with bf16 moments; up to 16 in one launch."""
    numbers = dict.fromkeys(("rest1", "rest2", "scale2", "rate", "decay", "eps"), "fp32")
    found = []
    for kind, moment in (("*fp32", "*fp32"), ("*bf16", "*fp32"), ("*bf16", "*bf16")):
        pointers = {"p_like": kind, "g_like": kind, "m_like": moment, "v_like": moment, "table_ptr": "*i64"}
        signature = pointers | {"num_rows": "i32"} | numbers
        constants = {"ALIGNED": True, "ROWS": 16}
        found.append(Specimen(_adamw, signature, constants, _CONFIG[arch], tuple(pointers), False))
    return found
