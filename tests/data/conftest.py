"""Fixtures: one prepared corpus for the modules that only read it, and a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.data.prepared import Prepared
from tests.data.hub import Hub, serve
from tests.data.shards import prepare_tiny


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus; read only."""
    return prepare_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A running hub with three files."""
    with serve(
        {f"shard_{index:05d}.parquet": bytes([index]) * 300_000 + b"end" for index in range(3)}
    ) as running:
        yield running
