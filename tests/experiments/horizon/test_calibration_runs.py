"""A calibration is planned from a recipe, refused where it would tell nothing, and read from records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.errors import RecipeError
from bench.experiments.horizon.calibration_runs import (
    Calibrated,
    as_json,
    calibration_table,
    plan_calibration,
)
from bench.records.store import read_all
from bench.spec.recipe import Kernels
from bench.spec.workspace import Workspace
from tests.records.sample import ROOT
from tests.tiny import checkout

REFERENCES = dict.fromkeys(Kernels.__struct_fields__, "reference")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A tiny checkout."""
    return checkout(tmp_path)


def planned(space: Workspace, tokens: list[int] | None, seeds: int = 1) -> Calibrated:
    return plan_calibration(space.submissions / "tiny.toml", "tiny", tokens, seeds, "cpu", space, {})


def test_each_horizon_is_the_recipe_with_its_tokens(space: Workspace) -> None:
    found = planned(space, [8192, 4096], seeds=2)
    assert [each.plan.tokens for each in found.plans] == [4096, 8192]
    assert [each.plan.iterations for each in found.plans] == [8, 16]
    assert found.plans[0].plan.scaling_parameters == found.base.plan.scaling_parameters
    assert "4 runs" in calibration_table(found)
    assert as_json(found)["seeds"] == 2


def test_three_short_horizons_are_the_default(space: Workspace) -> None:
    found = planned(space, None)
    ratios = [each.plan.tokens / each.plan.scaling_parameters for each in found.plans]
    assert ratios == pytest.approx([0.525, 1.05, 2.1], rel=0.05)


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        ([4096], "1 different"),
        ([4096] * 3, "1 different"),
        ([1, 2, 3, 4], "4 different"),
        ([4096, 4100], "same whole"),
    ],
)
def test_two_or_three_different_horizons_are_needed(space: Workspace, tokens: list[int], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        planned(space, tokens)


def test_a_track_that_fixes_the_horizon_is_refused(space: Workspace) -> None:
    with (space.tracks / "tiny.toml").open("a") as file:
        file.write("[scale.horizon]\niterations = 8\n")
    with pytest.raises(RecipeError, match="fixes the horizon"):
        planned(space, [4096, 8192])


def horizon(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`bench horizon folder:tiny` of a checkout."""
    command = [sys.executable, "-m", "bench", "horizon", "folder:tiny", "--device", "cpu", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_whole_command_calibrates_and_decides(tmp_path: Path) -> None:
    for name in ("bench", "kernels", "model"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    checkout(tmp_path, kernels=REFERENCES)
    words = ("--recipe", "submissions/tiny.toml", "--track", "tiny", "--horizons", "4096,8192")
    shown = horizon(tmp_path, *words, "--plan")
    assert "2 runs" in shown.stdout, shown.stderr
    done = horizon(tmp_path, *words, "--target", "4.0", "--lags", "1,2,4,8")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "leaderboard" / "horizon" / "tiny"
    decided = json.loads((folder / "decision.json").read_text())
    records = [stored.record for stored in read_all(tmp_path / "leaderboard" / "records")]
    assert {record.shape.tokens for record in records} == {4096, 8192}
    assert [point["tokens"] for point in decided["inference"]["points"]] == [4096, 8192]
    assert decided["decision"]["seed"] == records[0].identity.seed
    assert decided["decision"]["n_scaling_params"] == records[0].shape.scaling_parameters
    ElementTree.fromstring((folder / "statistics.svg").read_text())
    assert not [path for path in folder.iterdir() if str(tmp_path) in path.read_text()]
    run = tmp_path / ".runs" / "tiny" / "tiny-horizon-8192" / "0"
    again = horizon(tmp_path, *words, "--target", "4.0", "--checkpoint", str(run), "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["statistics"]["entropies"]["source"] == "checkpoint"
    assert len(read_all(tmp_path / "leaderboard" / "records")) == 2
