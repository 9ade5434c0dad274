"""What holds of a hashed bigram embedding added to a stream.

Shapes: B batch, T tokens, D width, R rows of the table. s is the strength.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.drawing import (
    LAYOUTS,
    draw_generator,
    draw_tensor,
    draw_upstream,
    fenced,
    gradients,
    leaf,
    scales_in,
    sizes,
)
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import BIGRAM_CURRENT, BIGRAM_PREVIOUS, accumulation_dtype, bigram_rows

# Ids about which the products leave int32, and the largest of a vocabulary of 2^17.
EDGE_IDS = (0, 1, 59_137, 59_138, 78_976, 78_977, 131_070, 131_071)
STRENGTHS = (0.0, 1.0, -0.3, 0.05, 20.0)


class Problem(NamedTuple):
    """The op's arguments; table and strength are float32 (float64 with a float64 stream)."""

    x: Tensor
    table: Tensor
    tokens: Tensor
    strength: Tensor

    def oracle(self) -> Problem:
        return Problem(self.x.double(), self.table.double(), self.tokens, self.strength.double())


def draw_problem(subject: Subject, data: Any) -> Problem:
    """Tokens of the whole range, the edges more often, and a table of few rows."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    B, T = data.draw(st.integers(0, 3), label="B"), data.draw(sizes(40), label="T")
    D, R = data.draw(sizes(130), label="D"), 1 + data.draw(sizes(33), label="R - 1")
    generator = draw_generator(data)
    ids = torch.tensor(EDGE_IDS)[torch.randint(0, len(EDGE_IDS), (B, T), generator=generator)]
    if not data.draw(st.booleans(), label="edge ids only"):
        ids = torch.where(
            torch.rand((B, T), generator=generator) < 0.5,
            ids,
            torch.randint(0, 2**17, (B, T), generator=generator),
        )
    ids = ids.to(data.draw(st.sampled_from((torch.int64, torch.int32)), label="dtype of ids"))
    wide = accumulation_dtype(torch.empty((), dtype=dtype))
    return Problem(
        draw_tensor(data, (B, T, D), dtype, subject.device),
        draw_tensor(data, (R, D), wide, subject.device, scales=scales_in(dtype)),
        fenced(ids, subject.device, data.draw(st.sampled_from(LAYOUTS), label="layout of ids")),
        torch.tensor(data.draw(st.sampled_from(STRENGTHS), label="s"), dtype=wide, device=subject.device),
    )


def with_gradients(function: Any, problem: Problem, upstream: Tensor) -> list[Tensor]:
    """The gradients of the stream, the table and the strength."""
    x, table, strength = (leaf(each) for each in (problem.x, problem.table, problem.strength))
    return gradients(function(x, table, problem.tokens, strength), (x, table, strength), (upstream,))


def modelled_row(current: int, previous: int | None, num_rows: int) -> int:
    """The hash in Python's integers: exact products, cut to 32 bits with sign, Python's floor-mod."""
    if previous is None:
        return num_rows - 1
    hashed = (current * BIGRAM_CURRENT ^ previous * BIGRAM_PREVIOUS) & 0xFFFFFFFF
    return (hashed - 2**32 if hashed >= 2**31 else hashed) % (num_rows - 1)


def modelled_rows(tokens: Tensor, num_rows: int) -> Tensor:
    """`modelled_row` of every token, [B, T]."""
    rows = [
        [modelled_row(row[t], row[t - 1] if t else None, num_rows) for t in range(len(row))]
        for row in tokens.tolist()
    ]
    return torch.tensor(rows, dtype=torch.int64).view(tokens.shape)


def the_reference_hash_is_that_of_python_integers(subject: Subject, data: Any) -> float:
    """For ids up to 2^17 and tables of millions of rows, by the hash alone."""
    tokens = draw_problem(subject, data).tokens
    num_rows = data.draw(st.sampled_from((2, 3, 17, 32_768, 5 * 32_768, 5 * 131_072)), label="R")
    rows = bigram_rows(tokens, num_rows)
    assert torch.equal(rows.cpu(), modelled_rows(tokens, num_rows))
    return 0.0


def the_table_is_looked_up_by_the_hash(subject: Subject, data: Any) -> float:
    """On a stream of zeros, s = 1 and a table of row numbers, the output is the hash of the pair, exactly."""
    problem = draw_problem(subject, data)
    R = min(problem.table.shape[0], 256)  # bf16 holds whole numbers to 256
    table = torch.arange(R, device=subject.device)[:, None].expand(R, problem.x.shape[2])
    actual = subject.function(
        torch.zeros_like(problem.x),
        table.to(problem.table.dtype),
        problem.tokens,
        torch.ones_like(problem.strength),
    )
    expected = modelled_rows(problem.tokens, R).to(subject.device)[:, :, None].expand(actual.shape)
    assert torch.equal(actual.double(), expected.double())
    return 0.0


def rounding_scale(problem: Problem) -> float:
    """The size of what is rounded on the way to the output."""
    return largest(problem.x) + abs(problem.strength.item()) * largest(problem.table)


def output_is_the_sum(subject: Subject, data: Any) -> float:
    """x + s * table[hash], hardly less exact than eager's."""
    problem = draw_problem(subject, data)
    oracle = subject.reference(*problem.oracle())
    actual, eager = subject.function(*problem), subject.reference(*problem)
    return error_ratio(actual, eager, oracle, scale=rounding_scale(problem))


def gradients_are_those_of_the_sum(subject: Subject, data: Any) -> float:
    """The upstream gradient for x, its sums over every row for the table, its product with the rows for s."""
    problem = draw_problem(subject, data)
    upstream = draw_upstream(data, problem.x)
    actual = with_gradients(subject.function, problem, upstream)
    eager = with_gradients(subject.reference, problem, upstream)
    oracle = with_gradients(subject.reference, problem.oracle(), upstream.double())
    assert torch.equal(actual[0], upstream)
    absolute = upstream.double().abs()
    magnitudes = with_gradients(
        subject.reference,
        problem.oracle()._replace(
            table=problem.table.double().abs(), strength=problem.strength.double().abs()
        ),
        absolute,
    )
    return max(
        error_ratio(*each, ulps=8.0, scale=largest(magnitude))
        for *each, magnitude in zip(actual[1:], eager[1:], oracle[1:], magnitudes[1:], strict=True)
    )


def only_the_pair_matters(subject: Subject, data: Any) -> float:
    """What is added at a token hangs on it and the one before: other tokens change no bit of the output."""
    problem = draw_problem(subject, data)
    B, T = problem.tokens.shape
    place = data.draw(st.integers(0, T - 1), label="place")
    others = torch.randint(0, 2**17, (B, T), generator=draw_generator(data)).to(problem.tokens)
    pair = slice(max(place - 1, 0), place + 1)
    others[:, pair] = problem.tokens[:, pair]
    before, after = subject.function(*problem), subject.function(*problem._replace(tokens=others))
    assert torch.equal(before[:, place], after[:, place])
    return 0.0


def table_gradient_sums_to_the_upstreams_sum(subject: Subject, data: Any) -> float:
    """Every upstream row reaches one row of the table, s times."""
    problem = draw_problem(subject, data)
    upstream = draw_upstream(data, problem.x)
    grad_table = with_gradients(subject.function, problem, upstream)[1].double()
    strength = problem.strength.item()
    expected = strength * upstream.double().sum((0, 1))
    allowed = abs(strength) * largest(upstream.double().abs().sum((0, 1)))
    # bf16's eager error is that of its rounded products.
    rounding = torch.finfo(problem.table.dtype).eps if problem.x.dtype != torch.bfloat16 else 2.0**-8
    error = largest(grad_table.sum(0) - expected)
    return error / (32.0 * rounding * allowed) if error else 0.0


def gradients_have_the_same_bits_every_time(subject: Subject, data: Any) -> float:
    """Sums are made in one order."""
    problem = draw_problem(subject, data)
    upstream = draw_upstream(data, problem.x)
    first, second = (with_gradients(subject.function, problem, upstream) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return 0.0


PROPERTIES: tuple[Property, ...] = (
    the_reference_hash_is_that_of_python_integers,
    the_table_is_looked_up_by_the_hash,
    output_is_the_sum,
    gradients_are_those_of_the_sum,
    only_the_pair_matters,
    table_gradient_sums_to_the_upstreams_sum,
    gradients_have_the_same_bits_every_time,
)
