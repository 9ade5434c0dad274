"""What holds of a table look-up in the compute dtype and of its gradient.

Shapes: B batch, T tokens, V rows of the table, D width.
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
from kernels.reference import accumulation_dtype

LARGEST_TABLE = 40


class Problem(NamedTuple):
    """The op's arguments; the table is in the dtype that gradients are summed in."""

    weight: Tensor
    tokens: Tensor
    dtype: torch.dtype

    def oracle(self) -> Problem:
        return Problem(self.weight.double(), self.tokens, torch.float64)


def draw_tokens(data: Any, num_ids: int, device: torch.device, longest: int = 65) -> Tensor:
    """Ids [B, T], or [T], of a few rows or of all, so that some repeat often; T and B may be 0."""
    T, B = data.draw(sizes(longest) | st.just(0), label="T"), data.draw(st.integers(0, 4), label="B")
    distinct = data.draw(st.sampled_from((1, 2, num_ids)), label="distinct ids")
    shape = (T,) if data.draw(st.booleans(), label="one row") else (B, T)
    tokens = torch.randint(0, min(distinct, num_ids), shape, generator=draw_generator(data))
    tokens = num_ids - 1 - tokens  # the last row of the table is always among the candidates
    dtype = data.draw(st.sampled_from((torch.int64, torch.int32)), label="dtype of ids")
    return fenced(tokens.to(dtype), device, data.draw(st.sampled_from(LAYOUTS), label="layout of ids"))


def draw_problem(subject: Subject, data: Any) -> Problem:
    """A table, ids and the dtype to look them up in."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    V, D = data.draw(sizes(LARGEST_TABLE), label="V"), data.draw(sizes(130), label="D")
    empty = torch.empty((), dtype=dtype)
    weight = draw_tensor(data, (V, D), accumulation_dtype(empty), subject.device, scales=scales_in(dtype))
    return Problem(weight, draw_tokens(data, V, subject.device), dtype)


def draw_gradient(data: Any, problem: Problem) -> Tensor:
    """An upstream gradient of the output's shape and dtype."""
    shape = (*problem.tokens.shape, problem.weight.shape[1])
    return draw_upstream(data, torch.empty(shape, dtype=problem.dtype, device=problem.weight.device))


def table_gradient(function: Any, problem: Problem, upstream: Tensor) -> Tensor:
    """The table's gradient for this upstream gradient."""
    weight = leaf(problem.weight)
    return gradients(function(weight, *problem[1:]), (weight,), (upstream,))[0]


def absolute_sum(problem: Problem, upstream: Tensor) -> float:
    """The largest sum of magnitudes that an element of the table's gradient is made of."""
    sums = torch.zeros(problem.weight.shape, dtype=torch.float64, device=upstream.device)
    rows = upstream.double().abs().reshape(-1, upstream.shape[-1])
    sums.index_add_(0, problem.tokens.reshape(-1).long(), rows)
    return largest(sums)


def rows_are_the_tables(subject: Subject, data: Any) -> float:
    """The output is the table's rows rounded once, bit for bit."""
    problem = draw_problem(subject, data)
    actual = subject.function(*problem)
    expected = problem.weight[problem.tokens.long()].to(problem.dtype)
    assert actual.dtype == problem.dtype
    assert torch.equal(actual, expected)
    return 0.0


def gradient_is_the_sum_of_each_ids_rows(subject: Subject, data: Any) -> float:
    """The gradient sums the upstream rows of every id, in the table's dtype, to float64's value."""
    problem = draw_problem(subject, data)
    upstream = draw_gradient(data, problem)
    actual = table_gradient(subject.function, problem, upstream)
    eager = table_gradient(subject.reference, problem, upstream)
    oracle = table_gradient(subject.reference, problem.oracle(), upstream.double())
    return error_ratio(actual, eager, oracle, ulps=4.0, scale=absolute_sum(problem, upstream))


def one_of_an_id_is_its_upstream_row(subject: Subject, data: Any) -> float:
    """Where an id occurs once its gradient is the upstream row, and rows of no token have 0, exactly."""
    problem = draw_problem(subject, data)
    V = problem.weight.shape[0]
    order = torch.randperm(V, generator=draw_generator(data))
    tokens = order[: data.draw(st.integers(0, V), label="T")].to(subject.device)
    problem = problem._replace(tokens=tokens)
    upstream = draw_gradient(data, problem)
    actual = table_gradient(subject.function, problem, upstream)
    expected = torch.zeros_like(problem.weight)
    expected[tokens] = upstream.to(problem.weight.dtype)
    assert torch.equal(actual, expected)
    return 0.0


def gradient_has_the_same_bits_every_time(subject: Subject, data: Any) -> float:
    """Sums are made in one order."""
    problem = draw_problem(subject, data)
    upstream = draw_gradient(data, problem)
    first, second = (table_gradient(subject.function, problem, upstream) for _ in range(2))
    assert torch.equal(first, second)
    return 0.0


def order_of_tokens_changes_only_roundings(subject: Subject, data: Any) -> float:
    """Permuting tokens together with their upstream rows leaves the gradient as it is."""
    problem = draw_problem(subject, data)
    problem = problem._replace(tokens=problem.tokens.reshape(-1))
    upstream = draw_gradient(data, problem)
    order = torch.randperm(len(problem.tokens), generator=draw_generator(data)).to(subject.device)
    before = table_gradient(subject.function, problem, upstream)
    after = table_gradient(subject.function, problem._replace(tokens=problem.tokens[order]), upstream[order])
    return error_ratio(after, before, before, ulps=4.0, scale=absolute_sum(problem, upstream))


def frequent_ids_are_summed_to_the_last(subject: Subject, data: Any) -> float:
    """Ids in runs longer than any block: with an upstream of ones the gradient counts the tokens, exactly."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    counts = data.draw(
        st.lists(st.sampled_from((0, 1, 15, 16, 17, 63, 64, 65, 130, 200)), min_size=1, max_size=3),
        label="counts",
    )
    ids = torch.repeat_interleave(torch.tensor(counts))
    ids = ids[torch.randperm(len(ids), generator=draw_generator(data))].to(subject.device)
    wide = accumulation_dtype(torch.empty((), dtype=dtype))
    problem = Problem(torch.zeros(len(counts), 3, dtype=wide, device=subject.device), ids, dtype)
    ones = torch.ones(len(ids), 3, dtype=dtype, device=subject.device)
    expected = torch.tensor(counts, dtype=wide, device=subject.device)[:, None].expand(-1, 3)
    assert torch.equal(table_gradient(subject.function, problem, ones), expected)
    return 0.0


PROPERTIES: tuple[Property, ...] = (
    rows_are_the_tables,
    gradient_is_the_sum_of_each_ids_rows,
    one_of_an_id_is_its_upstream_row,
    gradient_has_the_same_bits_every_time,
    order_of_tokens_changes_only_roundings,
    frequent_ids_are_summed_to_the_last,
)
