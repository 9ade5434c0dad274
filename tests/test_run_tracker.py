"""`bench run` with and without a tracker, in a process whose network is blocked."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from bench.records.store import read_all
from tests import tiny
from tests.records.tracker_packages import RAISING, SITE, TRACKIO, notes, write_package


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


@pytest.mark.parametrize(
    ("tracker", "source", "calls"),
    [(None, TRACKIO, 0), ("trackio", TRACKIO, tiny.STEPS + 4), ("trackio", RAISING, 1)],
)
def test_a_run_is_the_same_with_any_tracker(
    tracker: str | None, source: str, calls: int, tmp_path: Path
) -> None:
    space = tiny.checkout(tmp_path)
    write_package(tmp_path / "packages", "trackio", source)
    (tmp_path / "packages" / "sitecustomize.py").write_text(SITE)
    words = tiny.run_words(*(["--tracker", tracker] if tracker else []))
    code, told = tiny.bench(space, *words, before=partial(surroundings, tmp_path))
    assert code == 0, told
    (stored,) = read_all(space.records)
    assert stored.record.status == "ok"
    assert stored.record.machine.num_competing_processes == 0
    assert not (tmp_path / "network").exists()
    assert len(notes(tmp_path / "calls")) == calls
    assert told.count("warning: ") == (source == RAISING)
