"""The tiny bundle, read only."""

from __future__ import annotations

import pytest

from bench.evaluation.core.bundle import Bundle
from tests.evaluation.core.tiny_bundle import opened


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All three task types, 14 items each."""
    return opened(tmp_path_factory.mktemp("bundle"))
