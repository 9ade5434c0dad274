"""What holds of the soft-capped linear cross-entropy.

Shapes: N rows, D width, V vocabulary. x is a logit, c the cap, z = c tanh(x / c) the capped logit (x without
a cap), its slope dz/dx; lse the log of a row's sum of e^z.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import scaled
from bench.proving.drawing import draw_generator, draw_upstream
from bench.proving.properties.linear_cross_entropy_problem import (
    SOFTCAPS,
    SPREADS,
    Problem,
    Result,
    call,
    difference_ratio,
    draw_problem,
    draw_reduction,
    evaluate,
    gradient_ratio,
    loss_scale,
    rounding,
    row_weight,
    same_result,
    worst,
)
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import accumulation_dtype, softcap_logits

FAR_CAP = 3e4


def as_close_to_float64_as_eager(subject: Subject, data: Any) -> float:
    """Loss and gradients are hardly further from float64 than eager's, whatever the arguments."""
    problem, reduction = draw_problem(data, subject, spreads=SPREADS), draw_reduction(data)
    with torch.no_grad():
        upstream = draw_upstream(data, call(subject.reference, problem, reduction))
    actual, eager, oracle = (
        evaluate(function, problem, reduction, upstream, dtype)
        for function, dtype in (
            (subject.function, None),
            (subject.reference, None),
            (subject.reference, torch.float64),
        )
    )
    terms = problem.hidden.shape[0] if reduction == "sum" else 1
    of_loss = error_ratio(
        actual.loss, eager.loss, oracle.loss, factor=3, ulps=4, scale=loss_scale(problem) * terms
    )
    weight_of_row = row_weight(problem, reduction, upstream)
    return worst(of_loss, gradient_ratio(actual, eager, oracle, problem, weight_of_row))


def exact_logits_give_a_float32_loss(subject: Subject, data: Any) -> float:
    """With the identity as head bf16 logits are exact: the loss is good to float32, a gradient to bf16."""
    problem = draw_problem(data, subject)
    hidden = problem.hidden
    weight = torch.eye(hidden.shape[1], dtype=problem.weight.dtype, device=subject.device)
    targets = problem.targets.where(~problem.counted(), problem.targets.clamp_min(0) % hidden.shape[1])
    problem = problem._replace(weight=weight, targets=targets)
    actual = evaluate(subject.function, problem, "none")
    oracle = evaluate(subject.reference, problem, "none", dtype=torch.float64)
    size = problem.strength() * (1.0 + problem.softcap + problem.largest_z())
    eps = torch.finfo(actual.loss.dtype).eps
    of_loss = difference_ratio(actual.loss, oracle.loss, 8 * size * eps)
    allowed = 8 * size * eps + 2 * torch.finfo(hidden.dtype).eps * problem.strength()
    return worst(of_loss, difference_ratio(actual.hidden, oracle.hidden, allowed))


def extreme_logits_stay_finite_and_right(subject: Subject, data: Any) -> float:
    """Logits of 1e4 and 1e30, also a whole row at the bottom of the cap, where every e^z is smallest."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype")
    sign = data.draw(st.sampled_from((-1.0, 1.0)), label="sign")
    softcap = data.draw(st.sampled_from(SOFTCAPS), label="softcap")
    hidden = (torch.tensor([[1e4], [-1e4], [64.0], [1e30], [0.0]]) * sign).to(subject.device, dtype)
    tokens = data.draw(st.integers(1, 4), label="V")
    weight = torch.tensor([[1.0], [0.96875], [1.0], [-1.0]], device=subject.device)[:tokens]
    weight = weight.to(accumulation_dtype(hidden))
    targets = torch.full((5,), data.draw(st.integers(0, tokens - 1), label="target"), device=subject.device)
    problem = Problem(hidden, weight, targets, softcap, 0.0, -1)
    actual = evaluate(subject.function, problem, "none")
    oracle = evaluate(subject.reference, problem, "none", dtype=torch.float64)
    allowed = 8 * (1.0 + 4.0 * softcap) * torch.finfo(dtype).eps
    errors = [
        largest((x.double() - y) / (1.0 + y.abs())) / allowed for x, y in zip(actual, oracle, strict=True)
    ]
    return worst(*errors)


def gradients_are_linear_in_the_upstream_gradient(subject: Subject, data: Any) -> float:
    """Twice the upstream gradient gives twice the gradients, bit by bit; a row without one gets none."""
    problem, reduction = draw_problem(data, subject), draw_reduction(data)
    with torch.no_grad():
        upstream = draw_upstream(data, call(subject.reference, problem, reduction))
    once = evaluate(subject.function, problem, reduction, upstream)
    twice = evaluate(subject.function, problem, reduction, scaled(upstream, 2.0))
    assert torch.equal(twice.hidden, 2.0 * once.hidden)
    assert torch.equal(twice.weight, 2.0 * once.weight)
    if reduction == "none":
        chosen = torch.arange(upstream.shape[0], device=subject.device) % 2 == 0
        some = evaluate(subject.function, problem, reduction, upstream.where(chosen, 0.0))
        assert torch.equal(some.hidden, once.hidden.where(chosen[:, None], 0.0))
    return 0.0


def ignored_rows_get_nothing_and_change_nothing(subject: Subject, data: Any) -> float:
    """An ignored row has loss and gradient 0, and whatever it holds, all else stays bit by bit."""
    problem = draw_problem(data, subject)
    ignored = ~problem.counted()
    before = evaluate(subject.function, problem, "none")
    assert not before.loss[ignored].any()
    assert not before.hidden[ignored].any()
    reduction = draw_reduction(data)
    before = evaluate(subject.function, problem, reduction)
    hidden = problem.hidden.where(~ignored[:, None], problem.hidden + 7.0)
    problem.hidden.copy_(hidden)
    after = evaluate(subject.function, problem, reduction)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x, y)
    return 0.0


def nothing_counted_costs_nothing(subject: Subject, data: Any) -> float:
    """All rows ignored, or none there: loss (the mean too) and gradients are 0."""
    problem, reduction = draw_problem(data, subject), draw_reduction(data)
    rows = data.draw(st.sampled_from((0, problem.hidden.shape[0])), label="rows")
    targets = torch.full_like(problem.targets[:rows], problem.ignore_index)
    result = evaluate(
        subject.function, problem._replace(hidden=problem.hidden[:rows], targets=targets), reduction
    )
    assert result.loss.shape == ((rows,) if reduction == "none" else ())
    assert result.hidden.shape == (rows, problem.hidden.shape[1])
    for each in result:
        assert torch.equal(each, torch.zeros_like(each))
    return 0.0


def reductions_agree(subject: Subject, data: Any) -> float:
    """The sum is that of the rows' losses, the mean the sum over counted rows; the same without gradients."""
    problem = draw_problem(data, subject)
    losses = call(subject.function, problem, "none")
    total, mean = (evaluate(subject.function, problem, reduction) for reduction in ("sum", "mean"))
    with torch.no_grad():
        quiet = call(subject.function, problem, "sum")
    assert not quiet.requires_grad
    counted = max(int(problem.counted().sum()), 1)
    eps = torch.finfo(losses.dtype).eps * (largest(losses.double().abs().sum()) + loss_scale(problem) * 0.1)
    ratios = [difference_ratio(x, losses.sum(), 8 * eps) for x in (total.loss, mean.loss * counted, quiet)]
    scale = row_weight(problem, "sum") * problem.strength()
    allowed = 16 * torch.finfo(problem.hidden.dtype).eps * scale * largest(problem.weight)
    return worst(*ratios, difference_ratio(mean.hidden.double() * counted, total.hidden, allowed))


def tokens_are_interchangeable(subject: Subject, data: Any) -> float:
    """Another order of the vocabulary changes no loss and permutes the head's gradient."""
    problem = draw_problem(data, subject)._replace(ignore_index=-1)
    problem = problem._replace(targets=problem.targets.clamp_min(-1))
    order = torch.randperm(problem.weight.shape[0], generator=draw_generator(data)).to(subject.device)
    targets = problem.targets.where(problem.targets < 0, order.argsort()[problem.targets.clamp_min(0)])
    other = evaluate(
        subject.function, problem._replace(weight=problem.weight[order], targets=targets), "none"
    )
    return same_result(evaluate(subject.function, problem, "none"), other, problem, order)


def rows_are_independent(subject: Subject, data: Any) -> float:
    """Rows in another order, each twice, keep loss and gradient; the head's gradient doubles."""
    problem = draw_problem(data, subject)
    rows = problem.hidden.shape[0]
    order = torch.randperm(2 * rows, generator=draw_generator(data)).to(subject.device) % rows
    more = problem._replace(hidden=problem.hidden[order], targets=problem.targets[order])
    once, twice = evaluate(subject.function, problem, "none"), evaluate(subject.function, more, "none")
    expected = Result(once.loss[order], once.hidden[order], 2.0 * once.weight)
    return same_result(expected, twice, more, slice(None))


def a_common_shift_of_the_capped_logits_costs_only_the_z_loss(subject: Subject, data: Any) -> float:
    """With the identity as head, the gradients of a counted row's x over slope sum to 2 z_loss lse."""
    problem = draw_problem(data, subject)
    tokens = problem.hidden.shape[1]
    weight = torch.eye(tokens, dtype=problem.weight.dtype, device=subject.device)
    targets = problem.targets.where(~problem.counted(), problem.targets.clamp_min(0) % tokens)
    problem = problem._replace(weight=weight, targets=targets)
    actual = evaluate(subject.function, problem, "none").hidden.double()
    x = problem.hidden.double()
    z = softcap_logits(x, problem.softcap)
    slope = 1.0 - (z / problem.softcap).square() if problem.softcap else torch.ones_like(x)
    expected = 2.0 * problem.z_loss * z.logsumexp(1) * problem.counted()
    size = problem.strength() * (1.0 + problem.softcap) * largest(1.0 / slope)
    allowed = 8 * torch.finfo(problem.hidden.dtype).eps * size
    return difference_ratio((actual / slope).sum(1), expected, allowed)


def a_row_loses_at_least_nothing_and_at_most_what_the_cap_allows(subject: Subject, data: Any) -> float:
    """0 <= loss <= 2c + log V without a z-loss."""
    problem = draw_problem(data, subject, spreads=SPREADS, softcaps=SOFTCAPS[1:], z_losses=(0.0,))
    with torch.no_grad():
        losses = call(subject.function, problem, "none").double()
    slack = 4 * torch.finfo(accumulation_dtype(problem.hidden)).eps * (1.0 + problem.softcap)
    highest = 2.0 * problem.softcap + math.log(problem.weight.shape[0])
    assert bool((losses >= -slack).all())
    assert bool((losses <= highest + slack).all())
    return 0.0


def a_far_cap_is_none(subject: Subject, data: Any) -> float:
    """A cap far above the logits changes them by x^3 / 3c^2, and all else in proportion."""
    problem = draw_problem(data, subject, softcaps=(0.0,), z_losses=(0.0,))
    plain = evaluate(subject.function, problem, "none")
    capped = evaluate(subject.function, problem._replace(softcap=FAR_CAP), "none")
    moved = 4 * (problem.largest_z() + problem.largest_z() ** 3) / FAR_CAP**2
    scale = 4 * torch.finfo(problem.hidden.dtype).eps * rounding(problem) + moved
    rows = problem.hidden.shape[0] ** 0.5
    loss_eps = torch.finfo(plain.loss.dtype).eps
    return worst(
        difference_ratio(capped.loss, plain.loss, 8 * loss_eps * (1.0 + problem.largest_z()) + moved),
        difference_ratio(capped.hidden, plain.hidden, scale * largest(problem.weight)),
        difference_ratio(capped.weight, plain.weight, scale * rows * largest(problem.hidden)),
    )


PROPERTIES: tuple[Property, ...] = (
    as_close_to_float64_as_eager,
    exact_logits_give_a_float32_loss,
    extreme_logits_stay_finite_and_right,
    gradients_are_linear_in_the_upstream_gradient,
    ignored_rows_get_nothing_and_change_nothing,
    nothing_counted_costs_nothing,
    reductions_agree,
    tokens_are_interchangeable,
    rows_are_independent,
    a_common_shift_of_the_capped_logits_costs_only_the_z_loss,
    a_row_loses_at_least_nothing_and_at_most_what_the_cap_allows,
    a_far_cap_is_none,
)
