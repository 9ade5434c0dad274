"""Compiled passes: how often they are compiled, and what callers see of what they write to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from kernels.compiling import LEAST_ELEMENTS, compiled_pass
from kernels.dispatch import implementation

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on import


def _doubled_(x: Tensor, factor: Tensor) -> Tensor:
    x.mul_(factor)
    return x + 1.0


def test_a_pass_is_compiled_once_whatever_its_tensors_are_views_of() -> None:
    torch.compiler.reset()
    counters.clear()
    owners = [torch.ones(4, 6, 10), torch.ones(5, 30), torch.ones(200), torch.ones(3, 8, 8)]
    views = [owners[0].flatten(0, 1), owners[1][1:], owners[2][40:].view(16, 10), owners[3].flatten(0, 1)]
    for view in views:
        result = compiled_pass(_doubled_)(view, torch.tensor(2.0))
        assert (view == 2.0).all(), "the view's own memory is written to"
        assert (result == 3.0).all()
    assert counters["stats"]["unique_graphs"] == 1


def test_the_writes_of_a_compiled_step_are_seen_by_autograd() -> None:
    """Or a gradient taken of what was there before would be wrong, and nothing would say so."""
    shape = (2, 128, LEAST_ELEMENTS // 128)
    params, memory = torch.ones(shape), torch.zeros(shape)
    before = params._version, memory._version
    direction = implementation("muon_direction", "in-place")(params, memory, 0.9, compiled=True)
    implementation("muon_update", "in-place")(
        params, direction, None, lr=0.1, weight_decay=0.0, beta2=0.0, compiled=True
    )
    assert memory._version > before[1]
    assert params._version > before[0]
