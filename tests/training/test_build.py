"""What a run is built with, by its device."""

from __future__ import annotations

import pytest
import torch

from bench.training import build
from bench.training.build import polar_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_polar_iteration_runs_in_the_compute_dtype_where_there_are_units_for_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "without_units", tuple)
    assert polar_dtype(dtype, CPU) == polar_dtype(dtype, CUDA) == dtype


def test_a_processor_without_units_iterates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "without_units", lambda: (torch.bfloat16,))
    assert polar_dtype(torch.bfloat16, CPU) == torch.float32
    assert polar_dtype(torch.bfloat16, CUDA) == torch.bfloat16  # whatever the processor beside it has
