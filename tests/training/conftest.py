"""One corpus for all tests of training, made once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")
