"""What holds of the decoupled AdamW step.

A problem is a list of parameters of awkward shapes with gradients and moments, each in its own layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import require_intact_fence, twin
from bench.proving.drawing import draw_generator, draw_tensor, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject

TINY = 1e-37  # added to bounds that may be 0


class Problem(NamedTuple):
    """Lists of one length; moments are float32; float64 or bf16 where all the rest is, too."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]

    def oracle(self) -> Problem:
        return Problem(*([tensor.double() for tensor in tensors] for tensors in self))

    def only(self, i: int) -> Problem:
        return Problem(*(tensors[i : i + 1] for tensors in self))

    def replaced(self, change: Callable[[Tensor], Tensor], *names: str) -> Problem:
        return self._replace(**{name: [change(each) for each in getattr(self, name)] for name in names})


class Constants(NamedTuple):
    """The op's numbers."""

    lr: float = 0.02
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1


def draw_constants(data: Any, **fixed: Any) -> Constants:
    """The step's constants; `fixed` ones are not drawn."""
    drawn = Constants(
        lr=data.draw(st.sampled_from((0.02, 0.5)), label="lr"),
        betas=data.draw(st.sampled_from(((0.8, 0.95), (0.9, 0.999), (0.0, 0.3))), label="betas"),
        eps=data.draw(st.sampled_from((1e-8, 1e-10, 0.1)), label="eps"),
        weight_decay=data.draw(st.sampled_from((0.0, 0.1)), label="weight_decay"),
    )
    return drawn._replace(**fixed)


def draw_shape(data: Any) -> list[int]:
    """[N], [N, D] or [S, N, D]; of more than one of the interpreter's blocks, too."""
    rows, columns = data.draw(sizes(40), label="rows"), data.draw(sizes(40), label="columns")
    shape: list[int] = data.draw(
        st.sampled_from(([columns], [rows, columns], [2, 3, columns])), label="shape"
    )
    return shape


def draw_problem(data: Any, subject: Subject, *, most: int = 3, plain: bool = False) -> Problem:
    """Parameters in the middle of a run; plain ones are of size 1 and have not been stepped yet."""
    problem = Problem([], [], [], [])
    options: dict[str, Any] = {"scales": (1.0,), "contents": ("normal",)} if plain else {}
    all_in_bf16 = data.draw(st.booleans(), label="all in bf16") and torch.bfloat16 in subject.dtypes
    for _ in range(data.draw(st.integers(1, most), label="parameters")):
        shape = draw_shape(data)
        kind = torch.bfloat16 if all_in_bf16 else data.draw(st.sampled_from(subject.dtypes), label="dtype")
        if problem.params and torch.float64 in (kind, problem.exp_avgs[0].dtype):
            kind = problem.params[0].dtype  # moments are of one type
        moments = kind if all_in_bf16 else torch.promote_types(kind, torch.float32)
        types = (kind, kind, moments, moments)
        drawn = [draw_tensor(data, shape, each, subject.device, **options) for each in types]
        if plain:
            drawn[2].zero_()
            drawn[3].zero_()
        drawn[3].copy_(drawn[3].square())
        for tensors, tensor in zip(problem, drawn, strict=True):
            tensors.append(tensor)
    return problem


def draw_step(data: Any) -> int:
    """How many steps were taken, this one included."""
    step: int = data.draw(st.sampled_from((1, 2, 10, 3000)), label="step")
    return step


def run(
    function: Callable[..., None], problem: Problem, constants: Constants, step: int | Tensor, steps: int = 1
) -> Problem:
    """What all tensors become; the arguments stay as they are."""
    changed = Problem(*([twin(tensor) for tensor in tensors] for tensors in problem))
    for i in range(steps):
        function(*changed, step + i, **constants._asdict())
    return changed


def unit(param: Tensor) -> float:
    """The rounding unit of the parameter's dtype."""
    eps: float = torch.finfo(param.dtype).eps
    return eps


def value(subject: Subject, data: Any) -> float:
    """Parameters and moments are as close to float64 as eager's."""
    problem, constants, step = draw_problem(data, subject), draw_constants(data), draw_step(data)
    actual, eager = (
        run(function, problem, constants, step) for function in (subject.function, subject.reference)
    )
    oracle = run(subject.reference, problem.oracle(), constants, step)
    ratios = []
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        lists = (getattr(each, name) for each in (actual, eager, oracle, problem))
        for ours, theirs, exact, before in zip(*lists, strict=True):
            # The change of a parameter is rounded in the moments' type before it is added.
            moved = largest(exact - before.double()) * (4e-7 / unit(before) if name == "params" else 1.0)
            ulps = 1 if before.dtype == torch.bfloat16 else 16
            ratios.append(error_ratio(ours, theirs, exact, ulps=ulps, scale=largest(before) + moved))
    return max(ratios)


def it_is_torchs_adamw(subject: Subject, data: Any) -> float:
    """Some steps from nothing are those of torch.optim.AdamW in float64."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data)
    steps: int = data.draw(st.integers(1, 4), label="steps")
    after = run(subject.function, problem, constants, 1, steps)
    theirs = [torch.nn.Parameter(param.double()) for param in problem.params]
    optimizer = torch.optim.AdamW(theirs, **constants._asdict(), foreach=False, fused=False)
    for _ in range(steps):
        for param, grad in zip(theirs, problem.grads, strict=True):
            param.grad = grad.double()
        optimizer.step()
    return max(
        largest(ours.double() - param.detach()) / (16 * steps * unit(ours) * (1.0 + largest(param)))
        for ours, param in zip(after.params, theirs, strict=True)
    )


def without_gradients_only_the_decay_moves(subject: Subject, data: Any) -> float:
    """k steps without gradients or moments: p (1 - lr wd)^k."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data)
    problem = problem.replaced(torch.zeros_like, "grads")
    steps = data.draw(st.integers(1, 3), label="k")
    after = run(subject.function, problem, constants, draw_step(data), steps)
    assert not any(moment.any() for moment in after.exp_avgs + after.exp_avg_sqs)
    factor = (1.0 - constants.lr * constants.weight_decay) ** steps
    return max(
        largest((ours.double() - factor * param.double()) / (2 * steps * unit(param) * param.double().abs()))
        for ours, param in zip(after.params, problem.params, strict=True)
    )


def mirrored_gradients_mirror_the_step(subject: Subject, data: Any) -> float:
    """With -p, -g and -m everything but the second moment changes its sign, bit for bit."""
    problem, constants, step = draw_problem(data, subject), draw_constants(data), draw_step(data)
    mirrored = problem.replaced(torch.neg, "params", "grads", "exp_avgs")
    one, other = (run(subject.function, each, constants, step) for each in (problem, mirrored))
    for name, sign in (("params", -1), ("exp_avgs", -1), ("exp_avg_sqs", 1)):
        pairs = zip(getattr(one, name), getattr(other, name), strict=True)
        assert all(torch.equal(ours, sign * theirs) for ours, theirs in pairs)
    return 0.0


def the_first_step_is_the_learning_rate_long(subject: Subject, data: Any) -> float:
    """From nothing and with a small eps: p (1 - lr wd) - lr sign(g)."""
    problem = draw_problem(data, subject, plain=True)
    problem = problem.replaced(lambda grad: grad.abs().add(0.5).copysign(grad), "grads")
    constants = draw_constants(data, eps=1e-10)
    after = run(subject.function, problem, constants, 1)
    ratios: list[float] = []
    for ours, param, grad in zip(after.params, problem.params, problem.grads, strict=True):
        expected = param.double() * (1 - constants.lr * constants.weight_decay) - constants.lr * grad.sign()
        slack = 1e-9 * constants.lr + 4 * unit(ours) * (param.double().abs() + constants.lr)
        ratios.append(largest((ours.double() - expected) / slack))
    return max(ratios)


def a_constant_gradient_is_its_own_average(subject: Subject, data: Any) -> float:
    """Moments at g and g^2 stay there, however many steps follow: none stalls on the way."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data)
    moments = [grad.to(m.dtype) for grad, m in zip(problem.grads, problem.exp_avgs, strict=True)]
    problem = problem._replace(exp_avgs=moments, exp_avg_sqs=[moment.square() for moment in moments])
    after = run(subject.function, problem, constants, draw_step(data), 3)
    return max(
        largest((ours - was).double() / (8 * unit(was) * was.double().abs() + TINY))
        for name in ("exp_avgs", "exp_avg_sqs")
        for ours, was in zip(getattr(after, name), getattr(problem, name), strict=True)
    )


def parameters_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A list is its parameters one by one, bit for bit; an empty list and an empty parameter are nothing."""
    problem, constants, step = draw_problem(data, subject, most=4), draw_constants(data), draw_step(data)
    whole = run(subject.function, problem, constants, step)
    for i in range(len(problem.params)):
        alone = run(subject.function, problem.only(i), constants, step)
        assert all(torch.equal(mine[0], ours[i]) for mine, ours in zip(alone, whole, strict=True))
    subject.function([], [], [], [], step, **constants._asdict())
    nothing = [[tensors[0].new_zeros(0)] for tensors in problem]
    subject.function(*nothing, step, **constants._asdict())
    return 0.0


def a_step_counted_on_the_device_is_the_same_step(subject: Subject, data: Any) -> float:
    """A count that only the device knows gives what the number gives; Triton's refuses it."""
    problem, constants, step = draw_problem(data, subject), draw_constants(data), draw_step(data)
    expected = run(subject.function, problem, constants, step)
    counted = torch.tensor(step, device=subject.device)
    if subject.implementation == "triton":
        try:
            run(subject.function, problem, constants, counted)
        except TypeError:
            return 0.0
        raise AssertionError("a step count on the device was taken for a number")
    actual = run(subject.function, problem, constants, counted)
    return max(
        error_ratio(ours, theirs, theirs.double(), ulps=8.0, scale=largest(was))
        for name in ("params", "exp_avgs", "exp_avg_sqs")
        for ours, theirs, was in zip(
            *(getattr(each, name) for each in (actual, expected, problem)), strict=True
        )
    )


def gradients_are_left_alone(subject: Subject, data: Any) -> float:
    """Gradients, and what lies around all tensors, stay as they are."""
    problem, constants, step = draw_problem(data, subject), draw_constants(data), draw_step(data)
    after = run(subject.function, problem, constants, step)
    assert all(map(torch.equal, after.grads, problem.grads))
    for changed, before in zip(after, problem, strict=True):
        for ours, was in zip(changed, before, strict=True):
            require_intact_fence(ours, was)
    return 0.0


def rounding_has_no_bias(subject: Subject, data: Any) -> float:
    """bf16 parameters and moments are rounded to nearest: truncated ones would be 0.3 % too small."""
    if torch.bfloat16 not in subject.dtypes:
        return 0.0
    numbers = torch.randn(4, 64, 64, generator=draw_generator(data)).to(torch.bfloat16).to(subject.device)
    # Moments of their own: those of the gradient would round the numbers of a grid alike, or stall.
    param, grad, exp_avg, root = numbers.unbind()
    exp_avg_sq = root.square() + 0.1
    if not data.draw(st.booleans(), label="moments in bf16"):
        exp_avg, exp_avg_sq = exp_avg.float(), exp_avg_sq.float()
    problem, constants = Problem([param], [grad], [exp_avg], [exp_avg_sq]), Constants(lr=0.013)
    actual = run(subject.function, problem, constants, 10)
    exact = run(subject.reference, problem.oracle(), constants, 10)
    biases = [
        ((ours.double() - right) * right).sum() / right.square().sum()
        for name in ("params", "exp_avgs", "exp_avg_sqs")
        for ours, right in zip(getattr(actual, name), getattr(exact, name), strict=True)
    ]
    return max(map(largest, biases)) / (torch.finfo(torch.bfloat16).eps / 16)


PROPERTIES: tuple[Property, ...] = (
    value,
    it_is_torchs_adamw,
    without_gradients_only_the_decay_moves,
    mirrored_gradients_mirror_the_step,
    the_first_step_is_the_learning_rate_long,
    a_constant_gradient_is_its_own_average,
    parameters_do_not_know_each_other,
    a_step_counted_on_the_device_is_the_same_step,
    gradients_are_left_alone,
    rounding_has_no_bias,
)
