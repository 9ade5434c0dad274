"""A real sweep of two cells, in a checkout of its own, by the command a person types."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.records.store import read_all
from tests.experiments.conftest import REFERENCES
from tests.tiny import checkout

SWEEP = """
title = "Two learning rates"
base = "tiny"
track = "tiny"
effect = 5.0
sigma = 0.5
seeds = 1
confirm_seeds = 1

[stop]
failures = 1

[axes]
"scaling.learning_rate" = [1.0, 0.01]
"""


@pytest.fixture
def two(place: Path) -> Path:
    """The checkout with a sweep of two cells."""
    folder = place / "submissions" / "sweeps"
    folder.mkdir()
    (folder / "two.toml").write_text(SWEEP)
    return place


def sweep(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "bench",
        "sweep",
        "submissions/sweeps/two.toml",
        "--device",
        "cpu",
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_sweep_runs_resumes_and_reports(two: Path) -> None:
    place = two
    shutil.rmtree(place / ".data" / "tiny")
    failed = sweep(place)
    assert failed.returncode == 0, failed.stderr
    assert failed.stderr.count(", seed 0 again") == 1  # no corpus: tried twice, then the sweep stops
    assert "two-1.0, seed 0: failed" in failed.stdout
    assert "two-0.01, seed 0: not run" in failed.stdout

    checkout(place, kernels=REFERENCES)
    first = sweep(place)
    assert first.returncode == 0, first.stderr
    records = [stored.record for stored in read_all(place / "leaderboard" / "records")]
    assert sorted((r.identity.recipe, r.identity.seed_index) for r in records) == [
        ("two-0.01", 0),
        ("two-1.0", 0),
        ("two-1.0", 1),
    ]
    folder = place / "leaderboard" / "sweeps" / "two"
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert "on 1 fresh seeds" in (folder / "README.md").read_text()
    assert ElementTree.parse(folder / "cells.svg").getroot().tag.endswith("svg")

    again = sweep(place, "--json")  # what is recorded is not run again
    assert again.returncode == 0, again.stderr
    assert ", seed" not in again.stderr
    assert len(json.loads(again.stdout)) == 3


@pytest.mark.slow
def test_a_series_runs_the_seeds_that_lack_a_record(place: Path) -> None:
    words = ["run", "submissions/tiny.toml", "--track", "tiny", "--device", "cpu", "--seeds"]
    for count, runs in ((1, 1), (3, 2), (3, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "bench", *words, str(count)],
            cwd=place,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("have records" in done.stdout) == (runs == 0)
        stored = read_all(place / "leaderboard" / "records")
        assert sorted(each.record.identity.seed_index for each in stored) == list(range(count))


def test_a_sweep_is_planned_without_a_run(two: Path) -> None:
    place = two
    done = sweep(place, "--plan")
    assert done.returncode == 0, done.stderr
    assert "two-0.01" in done.stdout
    assert "3 runs (1 of them the winner's on fresh seeds): time not known" in done.stdout
    told = json.loads(sweep(place, "--plan", "--json").stdout)
    assert [cell["plan"]["iterations"] for cell in told["cells"]] == [8, 8]
    (place / "submissions" / "sweeps" / "two.toml").write_text(SWEEP.replace("5.0", "0.5"))
    refused = sweep(place)
    assert refused.returncode == 3
    assert "1 seeds a cell cannot resolve 0.5" in refused.stderr
    assert not (place / "leaderboard" / "records").exists()
