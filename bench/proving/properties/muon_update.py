"""What holds of Muon+, NorMuon, cautious decay and the update.

Shapes: S stacked matrices of M x P; a neuron is a row where M >= P, else a column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from bench.proving.bounds import error_ratio, largest
from bench.proving.copies import require_intact_fence, twin
from bench.proving.drawing import draw_generator, draw_tensor, fenced, sizes
from bench.proving.property import Property
from bench.proving.subject import Subject
from kernels.reference import accumulation_dtype, neuron_dim


class Problem(NamedTuple):
    """The op's tensors; parameters and second moment are float32, or float64 with an update in float64."""

    params: Tensor
    update: Tensor
    second_moment: Tensor | None

    def oracle(self) -> Problem:
        second = None if self.second_moment is None else self.second_moment.double()
        return Problem(self.params.double(), self.update.double(), second)

    def part(self, index: Any) -> Problem:
        return Problem(*(None if each is None else each[index] for each in self))  # type: ignore[arg-type]


class Constants(NamedTuple):
    """The op's numbers."""

    lr: float = 0.5
    weight_decay: float = 0.25
    beta2: float = 0.9
    renormalise: bool = False


def draw_constants(data: Any, **fixed: Any) -> Constants:
    """The step's constants; `fixed` ones are not drawn."""
    drawn = Constants(
        lr=data.draw(st.sampled_from((0.5, 0.02)), label="lr"),
        weight_decay=data.draw(st.sampled_from((0.0, 0.25)), label="weight_decay"),
        beta2=data.draw(st.sampled_from((0.3, 0.9, 0.99)), label="beta2"),
        renormalise=data.draw(st.booleans(), label="renormalise"),
    )
    return drawn._replace(**fixed)


def draw_shape(data: Any) -> list[int]:
    """[S, M, P]."""
    return [data.draw(st.integers(1, 3)), data.draw(sizes(70), label="M"), data.draw(sizes(70), label="P")]


def draw_problem(data: Any, subject: Subject, *, normuon: bool | None = None, plain: bool = False) -> Problem:
    """A stack and its update; a plain one holds normal numbers of size 1 and a second moment of zeros."""
    dtype = data.draw(st.sampled_from(subject.dtypes), label="dtype of the update")
    shape = draw_shape(data)
    options: dict[str, Any] = {"scales": (1.0,), "contents": ("normal",)} if plain else {}
    update = draw_tensor(data, shape, dtype, subject.device, **options)
    masters = accumulation_dtype(update)
    params = draw_tensor(data, shape, masters, subject.device, **options)
    if not (data.draw(st.booleans(), label="NorMuon") if normuon is None else normuon):
        return Problem(params, update, None)
    shape[neuron_dim(update)] = 1
    noise = torch.randn(shape, generator=draw_generator(data), dtype=torch.float64).square()
    size = 0.0 if plain else data.draw(st.sampled_from((0.0, 1e-12, 1.0)), label="second moment")
    return Problem(params, update, fenced((noise * size).to(masters), subject.device))


def run(function: Callable[..., None], problem: Problem, constants: Constants) -> Problem:
    """What parameters and second moment become; the arguments stay as they are."""
    params, update, second = problem
    changed = Problem(twin(params), update, None if second is None else twin(second))
    function(*changed, **constants._asdict())
    return changed


def unit(problem: Problem, factor: float = 16.0) -> float:
    """A few roundings of a number of size 1 in the parameters' type."""
    return factor * torch.finfo(problem.params.dtype).eps


def value(subject: Subject, data: Any) -> float:
    """Parameters and second moment are as close to float64 as eager's."""
    problem, constants = draw_problem(data, subject), draw_constants(data)
    actual, eager = (run(function, problem, constants) for function in (subject.function, subject.reference))
    oracle = run(subject.reference, problem.oracle(), constants)
    moved = largest(problem.params) + largest(oracle.params - problem.params.double())
    ratios = [error_ratio(actual.params, eager.params, oracle.params, ulps=8, scale=moved)]
    if actual.second_moment is not None:
        assert eager.second_moment is not None
        assert oracle.second_moment is not None
        # By neuron: a small one must not hide behind a large one.
        error = (actual.second_moment.double() - oracle.second_moment).abs()
        ratios.append(largest(error / (unit(problem) * oracle.second_moment + 1e-37)))
    return max(ratios)


def the_update_keeps_its_norm(subject: Subject, data: Any) -> float:
    """Whatever NorMuon does to the neurons, |change| = lr |update|, and lr sqrt(min(M, P)) with Muon+."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data, weight_decay=0.0)
    problem = problem._replace(params=torch.zeros_like(problem.params))
    norm = run(subject.function, problem, constants).params.double().norm(dim=(-2, -1))
    expected = problem.update.double().norm(dim=(-2, -1))
    if constants.renormalise:
        expected = torch.full_like(expected, min(problem.update.shape[-2:]) ** 0.5)
    return largest(norm / (constants.lr * expected) - 1.0) / unit(problem)


def neurons_move_alike_at_first(subject: Subject, data: Any) -> float:
    """NorMuon with a second moment of zeros gives every neuron's update the same root mean square."""
    problem = draw_problem(data, subject, normuon=True, plain=True)
    # A neuron of one small number would have a second moment below the least that is divided by.
    problem.update[problem.update.abs() < 0.1] = 0.1
    constants = draw_constants(data, weight_decay=0.0)
    problem = problem._replace(params=torch.zeros_like(problem.params))
    moved = run(subject.function, problem, constants).params.double()
    rms = moved.square().mean(neuron_dim(moved)).sqrt()
    return largest(rms / rms.mean(-1, keepdim=True) - 1.0) / unit(problem)


def the_second_moment_is_an_average(subject: Subject, data: Any) -> float:
    """v <- beta2 v + (1 - beta2) mean(update^2), by neuron; at a learning rate of 0 nothing else changes."""
    problem, constants = draw_problem(data, subject, normuon=True), draw_constants(data, renormalise=False)
    constants = constants._replace(lr=0.0)
    after = run(subject.function, problem, constants)
    assert after.second_moment is not None
    assert problem.second_moment is not None
    assert torch.equal(after.params, problem.params)
    mean = problem.update.double().square().mean(neuron_dim(problem.update), keepdim=True)
    expected = constants.beta2 * problem.second_moment.double() + (1.0 - constants.beta2) * mean
    return largest((after.second_moment.double() - expected) / (unit(problem) * expected + 1e-37))


def decay_spares_what_the_update_pushes_away(subject: Subject, data: Any) -> float:
    """Without Muon+ and NorMuon: p - lr u, and - lr wd p only where u and p have one sign or one is zero."""
    problem = draw_problem(data, subject, normuon=False)
    constants = draw_constants(data, renormalise=False, weight_decay=0.25)
    p, u = problem.params.double(), problem.update.double()
    if data.draw(st.booleans(), label="zeros in the update"):
        mask = torch.rand(u.shape, generator=draw_generator(data)).to(u.device) < 0.5
        u = u * mask
        problem = problem._replace(update=(problem.update * mask).to(problem.update.dtype))
    agree = torch.sign(u) * torch.sign(p) >= 0
    expected = p - constants.lr * u - constants.lr * constants.weight_decay * torch.where(agree, p, 0.0)
    actual = run(subject.function, problem, constants).params.double()
    return largest((actual - expected) / (unit(problem, 4.0) * (p.abs() + u.abs()) + 1e-37))


def without_decay_the_update_does_not_see_the_parameters(subject: Subject, data: Any) -> float:
    """The change of any parameters is that of zeros."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data, weight_decay=0.0)
    origin = problem._replace(params=torch.zeros_like(problem.params))
    change = run(subject.function, problem, constants).params.double() - problem.params.double()
    alone = run(subject.function, origin, constants).params.double()
    return largest(change - alone) / (unit(problem, 4.0) * (largest(problem.params) + largest(alone)))


def size_of_the_update_does_not_matter_to_muon_plus(subject: Subject, data: Any) -> float:
    """With Muon+, c times the update moves the parameters as far, NorMuon included."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data, renormalise=True)
    c = data.draw(st.sampled_from((0.125, 2.0, 1024.0)), label="c")
    scaled = problem._replace(update=problem.update * c)
    one, other = (run(subject.function, each, constants) for each in (problem, scaled))
    size = largest(problem.params) + largest(one.params)
    return largest(one.params.double() - other.params.double()) / (unit(problem) * size)


def transposing_commutes(subject: Subject, data: Any) -> float:
    """Of the transposed stack the change is the transpose; a square one averages rows either way."""
    problem, constants = draw_problem(data, subject, plain=True), draw_constants(data)
    if problem.params.shape[-1] == problem.params.shape[-2]:
        problem = problem._replace(second_moment=None)
    second = problem.second_moment
    turned = Problem(problem.params.mT, problem.update.mT, None if second is None else second.mT)
    one, other = (run(subject.function, each, constants) for each in (problem, turned))
    size = largest(problem.params) + largest(one.params)
    return largest(one.params.double() - other.params.mT.double()) / (unit(problem) * size)


def matrices_do_not_know_each_other(subject: Subject, data: Any) -> float:
    """A stack is its matrices one by one."""
    problem, constants = draw_problem(data, subject), draw_constants(data)
    whole = run(subject.function, problem, constants)
    ratios = []
    for i in range(len(problem.params)):
        alone, part = run(subject.function, problem.part(slice(i, i + 1)), constants), whole.part([i])
        scale = largest(problem.params) + largest(part.params)
        ratios.append(error_ratio(alone.params, part.params, part.params, ulps=8, scale=scale))
        if alone.second_moment is not None:
            assert part.second_moment is not None
            ratios.append(error_ratio(alone.second_moment, part.second_moment, part.second_moment, ulps=8))
    return max(ratios)


def only_parameters_and_second_moment_are_changed(subject: Subject, data: Any) -> float:
    """The update, and what lies around the tensors, stay as they are."""
    problem, constants = draw_problem(data, subject), draw_constants(data)
    update = twin(problem.update)
    after = run(subject.function, problem._replace(update=update), constants)
    assert torch.equal(update, problem.update)
    for changed, before in zip(after, problem, strict=True):
        if changed is not None and before is not None:
            require_intact_fence(changed, before)
    return 0.0


PROPERTIES: tuple[Property, ...] = (
    value,
    the_update_keeps_its_norm,
    neurons_move_alike_at_first,
    the_second_moment_is_an_average,
    decay_spares_what_the_update_pushes_away,
    without_decay_the_update_does_not_see_the_parameters,
    size_of_the_update_does_not_matter_to_muon_plus,
    transposing_commutes,
    matrices_do_not_know_each_other,
    only_parameters_and_second_moment_are_changed,
)
