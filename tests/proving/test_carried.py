"""Carried to another device, implementations keep their properties; the CPU stands in for that device."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.proving import subject as subjects
from bench.proving.carried import HOME, carried
from bench.proving.drawing import fenced
from bench.proving.properties.table import properties_of
from bench.proving.property import Property, check
from bench.proving.subject import Subject, subject
from kernels.choices import IMPLEMENTATIONS, provable

NUM_EXAMPLES = 5
CASES = [
    pytest.param(op, name, prop, id=f"{op}-{name}-{prop.__name__}")
    for op in IMPLEMENTATIONS
    for name in provable(op, "mps")
    for prop in properties_of(op)
]


def on_a_mac(op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """What is proved there, but for the device that it is carried to."""
    monkeypatch.setattr(subjects, "carried", lambda function, _: carried(function, HOME))
    return subject(op, name, torch.device("mps"))


@pytest.mark.parametrize(("op", "name", "prop"), CASES)
def test_properties_hold_of_what_is_carried(
    op: str, name: str, prop: Property, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_there = on_a_mac(op, name, monkeypatch)
    assert torch.float64 not in carried_there.dtypes
    check(prop, carried_there, NUM_EXAMPLES, seed=0)


class Pair(NamedTuple):
    """Two tensors."""

    a: Tensor
    b: Tensor


@pytest.mark.parametrize("layout", ["contiguous", "padded", "transposed"])
def test_fences_and_strides_come_along(layout: str) -> None:
    x = fenced(torch.randn(3, 4), HOME, layout)
    seen: list[Tensor] = []
    carried(seen.append, HOME)(x)
    assert seen[0].stride() == x.stride()
    assert torch.equal(seen[0], x)
    assert seen[0].untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert seen[0].untyped_storage().nbytes() == x.untyped_storage().nbytes()
    around = seen[0].as_strided((5,), (1,), seen[0].storage_offset() - 5)
    assert around.isnan().all()


def test_what_is_changed_in_place_comes_back_and_nothing_else() -> None:
    changed, other = torch.ones(3), torch.ones(3)

    def double_(pairs: list[Pair], scale: float) -> Tensor:
        return pairs[0].a.mul_(scale)

    result = carried(double_, HOME)([Pair(changed, other)], scale=2.0)
    assert result is changed
    assert changed.tolist() == [2.0] * 3
    assert other._version == 0


def test_what_is_written_beside_an_argument_comes_back_too() -> None:
    """In the layout's padding and fence, where a property looks for it."""
    fence = fenced(torch.randn(2, 3), HOME, "padded")

    def beyond_(tensor: Tensor) -> None:
        tensor.as_strided((1,), (1,), tensor.storage_offset() - 1).fill_(7.0)

    carried(beyond_, HOME)(fence)
    assert fence.as_strided((1,), (1,), fence.storage_offset() - 1).item() == 7.0
    assert not fence.isnan().any()


def test_arguments_of_one_storage_keep_each_others_changes() -> None:
    whole = torch.zeros(4)

    def fill_(first: Tensor, second: Tensor) -> None:
        first.fill_(1.0)
        second.fill_(2.0)

    carried(fill_, HOME)(whole[:2], whole[2:])
    assert whole.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_a_result_that_lies_in_an_argument_does_so_here() -> None:
    x = torch.arange(6.0).view(2, 3)
    found = carried(lambda t: t.t()[1:], HOME)(x)
    assert found.data_ptr() == x.data_ptr() + 4
    assert torch.equal(found, x.t()[1:])


def test_gradients_come_back() -> None:
    x = torch.arange(3.0, requires_grad=True)
    devices: list[Any] = []

    def square(t: Tensor) -> tuple[Tensor, str]:
        devices.append(t)
        return t * t, "words"

    y, words = carried(square, HOME)(x)
    assert words == "words"
    assert devices[0] is not x
    y.backward(torch.ones(()).expand(3))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 4.0]


def test_a_wrong_implementation_is_found_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = on_a_mac("relu_squared_mlp", "keep-output", monkeypatch)
    wrong = honest._replace(function=lambda *tensors: 1.01 * honest.function(*tensors))
    found = []
    for prop in properties_of("relu_squared_mlp"):
        try:
            check(prop, wrong, 10, seed=0, shrink=False)
        except AssertionError:
            found.append(prop)
    assert found
