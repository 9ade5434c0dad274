"""One prepared corpus and a model for it; one thread, as the small tensors ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.data.prepared import Prepared
from tests.data.shards import prepare_tiny


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus of 320 tokens; read only."""
    return prepare_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For this package only; the number of threads is as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
