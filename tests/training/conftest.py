"""One corpus for all tests of training, made once; and one thread, as the small tensors ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For this package only; the number of threads is as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
