"""`bench horizon` on a small corpus: what it writes, and what it says to wrong input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import cli
from bench.commands.horizon import lag_list
from bench.spec.workspace import Workspace
from tests.tiny import checkout


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A tiny checkout, which the command line takes for its own."""
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    return checkout(tmp_path)


def failed(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """The one line of an error, which has a hint below it."""
    assert cli.main(["horizon", *words]) == code
    error, hint = capsys.readouterr().err.strip().split("\n")[-2:]
    assert hint.startswith("hint: ")
    return error


def test_statistics_alone_fall_back_and_say_why(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["horizon", "folder:tiny", "--vocab", "384", "--lags", "1,2,3"]) == 0
    out = capsys.readouterr().out
    assert "fallback, 10.5 a parameter" in out
    assert "gamma is from counts" in out
    folder = space.root / "leaderboard" / "horizon" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        *("statistics.json", "statistics.svg", "decision.json", "decision.csv")
    }
    assert [
        lag["lag"] for lag in json.loads((folder / "statistics.json").read_text())["correlations"]["lags"]
    ] == [*(1, 2, 3)]
    with (folder / "decision.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert len(row) == 21
    assert row["lane_b_decision"] == "fallback"
    ElementTree.fromstring((folder / "statistics.svg").read_text())
    assert not [path for path in folder.iterdir() if str(space.root) in path.read_text()]


def test_json_goes_where_it_is_told(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    folder = space.root / "elsewhere"
    words = ("folder:tiny", "--vocab", "384", "--lags", "1,2,3", "--folder", str(folder), "--json")
    assert cli.main(["horizon", *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["statistics"] == json.loads((folder / "statistics.json").read_text())
    assert shown["decision"] == json.loads((folder / "decision.json").read_text())["decision"]


@pytest.mark.parametrize("words", [["--plan"], ["--target", "2"], ["--horizons", "1M,2M"], ["--seeds", "2"]])
def test_a_calibration_needs_its_recipe(
    space: Workspace, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert f"{words[0]} needs --recipe" in failed(capsys, 2, "folder:tiny", *words)


def test_statistics_and_calibration_are_of_one_text(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(space.submissions / "tiny.toml")
    words = ("folder:other", "--recipe", recipe, "--track", "tiny", "--horizons", "4096,8192")
    assert "folder:other is not what tiny on tiny trains on, folder:tiny" in failed(capsys, 2, *words)


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["folder:none"], 5, "holds 0 Parquet files"),
        (["nonsense"], 2, "unknown corpus"),
        (["folder:tiny", "--vocab", "384", "--checkpoint", "none"], 5, "tokenizer"),
        (["folder:tiny", "--lags", "1,2"], 2, "three or more lags"),
        (["folder:tiny", "--horizons", "1M,x"], 2, "'x'"),
    ],
)
def test_wrong_input_is_one_line_and_a_hint(
    space: Workspace, capsys: pytest.CaptureFixture[str], words: list[str], code: int, what: str
) -> None:
    assert what in failed(capsys, code, *words)


def test_documents_too_short_for_a_lag_are_told(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("folder:tiny", "--vocab", "384", "--lags", "1,2,4096")
    assert "no document has tokens 4096 apart" in failed(capsys, 5, *words)


def test_lags_are_put_in_order_and_counted_once() -> None:
    assert lag_list("8,1,2,2") == (1, 2, 8)
