"""Dispatches are counted: each call of an eager op, each place of a traced one."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.counting import dispatches, ran


def counted(x: Tensor) -> Tensor:
    ran("an_op", "a_test")
    return x + 1


def test_every_eager_call_counts() -> None:
    before = dispatches()
    for _ in range(3):
        counted(torch.zeros(1))
    assert dispatches(since=before) == {"an_op/a_test": 3}
    assert dispatches()["an_op/a_test"] == before.get("an_op/a_test", 0) + 3
    assert dispatches(since=dispatches()) == {}


def test_a_compiled_graph_counts_its_places_once() -> None:
    """By the tracer alone: what it makes of the graph does not matter here."""

    def twice(x: Tensor) -> Tensor:
        return counted(counted(x))

    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    before = dispatches()
    for _ in range(5):
        assert compiled(torch.zeros(1)).item() == 2.0
    assert dispatches(since=before) == {"an_op/a_test": 2}
