"""`bench run` with and without a tracker, in a process whose network is blocked."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from bench.records.store import read_all
from tests import tiny
from tests.records.tracker_packages import SITE, TRACKIO, notes, write_package


def surroundings(folder: Path) -> None:
    """In the run's process: the packages on its path, its network refused, as in every process it starts."""
    packages = folder / "packages"
    os.environ |= {
        "PYTHONPATH": str(packages),
        "TRACKER_NOTES": str(folder / "calls"),
        "NETWORK_NOTES": str(folder / "network"),
    }
    sys.path.insert(0, str(packages))
    exec(compile(SITE, "sitecustomize", "exec"), {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize(("tracker", "num_calls"), [(None, 0), ("trackio", tiny.STEPS + 4)])
def test_a_run_needs_no_tracker_and_knows_of_none(
    tracker: str | None, num_calls: int, data: Path, tmp_path: Path
) -> None:
    space = tiny.checkout(tmp_path, data)
    write_package(tmp_path / "packages", "trackio", TRACKIO)
    (tmp_path / "packages" / "sitecustomize.py").write_text(SITE)
    words = tiny.run_words(*(["--tracker", tracker] if tracker else []))
    code, told = tiny.bench(space, *words, before=partial(surroundings, tmp_path))
    assert code == 0, told
    (stored,) = read_all(space.records)
    assert stored.record.status == "ok"
    assert not (tmp_path / "network").exists()
    assert len(notes(tmp_path / "calls")) == num_calls
    assert "warning: " not in told
