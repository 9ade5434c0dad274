"""Implementations of the bigram residual that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.reference import BIGRAM_CURRENT, BIGRAM_PREVIOUS, accumulation_dtype, embedding
from kernels.reference import bigram_residual as right
from tests.proving.mutants.source import mutated

Rows = Callable[[Tensor, int], Tensor]


def hashed(
    tokens: Tensor,
    num_rows: int,
    *,
    dtype: torch.dtype = torch.int32,
    rounding: str = "floor",
    multipliers: tuple[int, int] = (BIGRAM_CURRENT, BIGRAM_PREVIOUS),
    first: int = -1,
    modulus: int = -1,
) -> Tensor:
    """The reference's rows with the parts that mutants exchange; `first` and `modulus` are relative to R."""
    ids = tokens.to(dtype)
    products = (multipliers[0] * ids[:, 1:]) ^ (multipliers[1] * ids[:, :-1])
    divisor = num_rows + modulus
    rows = products - torch.div(products, divisor, rounding_mode=rounding) * divisor
    start = torch.full_like(ids[:, :1], (num_rows + first) % num_rows)
    return torch.cat((start, rows), 1).long() % num_rows


def precedence(tokens: Tensor, num_rows: int) -> Tensor:
    """`a ^ b % m` as Python reads it: a ^ (b % m)."""
    ids = tokens.to(torch.int32)
    rows = (BIGRAM_CURRENT * ids[:, 1:]) ^ ((BIGRAM_PREVIOUS * ids[:, :-1]) % (num_rows - 1))
    first = torch.full_like(ids[:, :1], num_rows - 1)
    return torch.cat((first, rows), 1).long() % num_rows


def with_rows(rows: Rows, x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    return x + strength * embedding(table, rows(tokens, table.shape[0]), x.dtype)


def zeros(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    return 0 * right(x, table, tokens, strength)


def identity(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    return x + 0 * right(x, table, tokens, strength)


def without_strength(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    return right(x, table, tokens, strength / strength.detach().where(strength != 0, 1.0))


def without_strengths_gradient(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    return right(x, table, tokens, strength.detach() + 0 * strength)


def without_the_last_row(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    y = right(x, table, tokens, strength)
    return torch.cat((y[:, :-1], x[:, -1:]), 1)


def with_a_table_in_low_precision(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    low = torch.float32 if x.dtype == torch.float64 else torch.bfloat16
    return right(x, table.to(low).to(table.dtype), tokens, strength)


class _TableGradientUnscaled(torch.autograd.Function):
    """strength * rows whose rows get the upstream gradient without the strength."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return strength * rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (rows,) = ctx.saved_tensors
        return grad, (grad.to(accumulation_dtype(grad)) * rows).sum()


def with_unscaled_table_gradient(x: Tensor, table: Tensor, tokens: Tensor, strength: Tensor) -> Tensor:
    rows = embedding(table, hashed(tokens, table.shape[0]), x.dtype)
    added: Tensor = _TableGradientUnscaled.apply(rows, strength)
    return x + added


HASHES: dict[str, Rows] = {
    "truncating mod": partial(hashed, rounding="trunc"),
    "no wrap-around": partial(hashed, dtype=torch.int64),
    "multipliers swapped": partial(hashed, multipliers=(BIGRAM_PREVIOUS, BIGRAM_CURRENT)),
    "first token in row 0": partial(hashed, first=0),
    "mod R": partial(hashed, modulus=0),
    "mod before xor": precedence,
}
KERNEL = {
    "truncating mod": (
        "hashed_N = tl.where(hashed_N < 0, hashed_N + (num_rows - 1), hashed_N)",
        "hashed_N = tl.where(hashed_N < 0, -hashed_N, hashed_N)",
    ),
    "pairs across rows": (
        "hashed_N = tl.where(place_N > 0, hashed_N, num_rows - 1)",
        "hashed_N = tl.where(positions_N > 0, hashed_N, num_rows - 1)",
    ),
    "int64 hash": (
        "current_N = tl.load(tokens, mask=mask_N, other=0).to(tl.int32)",
        "current_N = tl.load(tokens, mask=mask_N, other=0).to(tl.int64)",
    ),
    "strength's gradient of one program": ("partials_P.sum()", "partials_P.flatten()[:1].sum()"),
    "table's gradient unscaled": (".mul_(strength)", ""),
}
MUTANTS: dict[str, Callable[..., Tensor]] = {
    "zeros": zeros,
    "identity": identity,
    "no strength": without_strength,
    "no gradient of strength": without_strengths_gradient,
    "last token dropped": without_the_last_row,
    "table in low precision": with_a_table_in_low_precision,
    "table's gradient unscaled": with_unscaled_table_gradient,
    **{name: partial(with_rows, rows) for name, rows in HASHES.items()},
    **{f"kernel: {name}": mutated("bigram_residual", *texts) for name, texts in KERNEL.items()},
}
