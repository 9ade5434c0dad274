"""Implementations of the table look-up that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import accumulation_dtype
from kernels.reference import embedding as right
from tests.proving.mutants.source import mutated


def zeros(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return 0 * right(weight, tokens, dtype)


def rows_one_on(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return right(weight, (tokens + 1) % weight.shape[0], dtype)


def without_the_cast(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return right(weight, tokens, weight.dtype)


def rounded_twice(weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    low = torch.float32 if dtype == torch.float64 else torch.bfloat16
    return right(weight, tokens, low).to(dtype)


class _Gradient(torch.autograd.Function):
    """The right rows, and a gradient of a mutant's making from the upstream rows [N, D] and ids [N]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, dtype: torch.dtype, sums: Any) -> Tensor:
        ctx.save_for_backward(weight, tokens)
        ctx.sums = sums
        return right(weight, tokens, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, tokens = ctx.saved_tensors
        rows, ids = grad.reshape(-1, grad.shape[-1]), tokens.reshape(-1).long()
        return ctx.sums(torch.zeros_like(weight), rows, ids), None, None, None


def with_gradient(
    sums: Callable[[Tensor, Tensor, Tensor], Tensor], weight: Tensor, tokens: Tensor, dtype: torch.dtype
) -> Tensor:
    rows: Tensor = _Gradient.apply(weight, tokens, dtype, sums)
    return rows


def summed_in_the_upstreams_dtype(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    low = torch.float32 if rows.dtype == torch.float64 else torch.bfloat16
    total = zero.to(low)
    for i, row in zip(ids.tolist(), rows.to(low), strict=True):
        total[i] += row
    return total.to(zero.dtype)


def last_of_an_id(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return zero.index_copy(0, ids, rows.to(zero.dtype))


def without_the_last_token(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return zero.index_add(0, ids[:-1], rows[:-1].to(zero.dtype))


def runs_cut_at_blocks(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Each id summed up to the end of its first block of 64 sorted rows."""
    order = ids.sort(stable=True).indices
    ids, rows = ids[order], rows[order].to(zero.dtype)
    for start in range(0, len(ids), 64):
        for i in ids[start : start + 64].unique().tolist():
            if not start or ids[start - 1] != i:
                zero[i] = rows[start : start + 64][ids[start : start + 64] == i].sum(0)
    return zero


def mean_of_an_id(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    counts = ids.bincount(minlength=zero.shape[0]).clamp_min(1)[:, None]
    return zero.index_add(0, ids, rows.to(zero.dtype)) / counts


def upstream_ignored(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return zero.index_add(0, ids, torch.ones_like(rows, dtype=zero.dtype))


def in_float32(zero: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """What a kernel without float64 would do where float64 is asked for."""
    assert zero.dtype == accumulation_dtype(zero)
    return zero.float().index_add(0, ids, rows.float()).to(zero.dtype)


GRADIENTS = {
    "summed in the upstream's dtype": summed_in_the_upstreams_dtype,
    "last of an id": last_of_an_id,
    "last token dropped": without_the_last_token,
    "runs cut at blocks": runs_cut_at_blocks,
    "mean of an id": mean_of_an_id,
    "upstream ignored": upstream_ignored,
    "float64 in float32": in_float32,
}
KERNEL = {
    "runs of three blocks cut after two": ("while next_id == mine:", "if next_id == mine:"),
    "the first part of a run is another's": ("(2 * block + 1) * width", "2 * block * width"),
    "every part of a run is a whole": ("if (mine == next_id) & (mine != id_before):", "if mine == next_id:"),
}
MUTANTS: dict[str, Callable[..., Tensor]] = {
    "zeros": zeros,
    "rows one on": rows_one_on,
    "no cast": without_the_cast,
    "rounded twice": rounded_twice,
    **{name: partial(with_gradient, sums) for name, sums in GRADIENTS.items()},
    **{f"kernel: {name}": mutated("embedding", *texts) for name, texts in KERNEL.items()},
}
