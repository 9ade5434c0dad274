"""`bench submit`: a change of exactly a recipe, its records and the board, in a real checkout of git."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import cli
from bench.board.build import write_board
from bench.records.schema import Record
from bench.records.store import write_once
from bench.spec.submission import load
from bench.spec.workspace import Workspace
from tests.records.sample import ROOT, changed, sample

RECIPE = 'title = "Mine"\nbase = "quick"\ntrack = "cpu-quick"\n[optimizer.muon]\nlr = 0.05\n'
SUBMIT = ["submit", "submissions/mine.toml"]


def git(root: Path, *words: str) -> str:
    """What git says, as somebody who has a name."""
    name = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *name, *words], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A clean checkout with one row, and beside it a recipe with three runs, not yet committed."""
    for folder in ("leaderboard/tracks", "submissions"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    here = Workspace(root=tmp_path, data=tmp_path / ".data")
    write_once(here.records, *sample())
    write_board(here)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "A")
    git(tmp_path, "config", "user.email", "a@example.org")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    (here.submissions / "mine.toml").write_text(RECIPE)
    for index in range(3):
        write_once(here.records, *mine(here, index))
    write_board(here)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return here


def mine(space: Workspace, index: int) -> tuple[Record, bytes]:
    """A run of the new recipe."""
    return sample("mine", index, 2.4 + index / 100, recipe=load(space.submissions / "mine.toml").recipe)


def failed(capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a submission that must be refused."""
    capsys.readouterr()
    assert cli.main(SUBMIT) == 8
    error = capsys.readouterr().err
    assert "\nhint: " in error
    return error


def test_it_prints_the_commands_and_does_nothing(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = git(space.root, "status", "--porcelain")
    assert cli.main(SUBMIT) == 0
    out = capsys.readouterr().out
    assert "git switch --create submit-mine\ngit add -- leaderboard/LEADERBOARD.md " in out
    assert out.endswith("git push YOUR-FORK submit-mine\n")
    assert git(space.root, "status", "--porcelain") == before
    assert git(space.root, "branch", "--list", "submit-mine") == ""


def test_it_commits_exactly_the_submission(space: Workspace) -> None:
    assert cli.main([*SUBMIT, "--commit"]) == 0
    assert git(space.root, "status", "--porcelain") == ""
    names = git(space.root, "show", "--name-only", "--format=%s").split("\n")
    assert names[0] == "Submit mine: 3 run(s) on cpu-quick"
    folders = sorted({name.rpartition("/")[0] for name in names[1:] if name})
    assert folders == ["leaderboard", "leaderboard/records/cpu-quick/mine", "submissions"]
    assert len([name for name in names[1:] if name]) == 3 * 2 + 5


def _touch(path: str) -> Callable[[Workspace], None]:
    def touch(space: Workspace) -> None:
        (space.root / path).parent.mkdir(parents=True, exist_ok=True)
        (space.root / path).write_text("x")

    return touch


def _lie(space: Workspace) -> None:
    record, log = mine(space, 3)
    write_once(space.records, changed(record, "timing.mfu", 2.0), log)
    (space.board).write_text("")


def _edit_old(space: Workspace) -> None:
    old = next((space.records / "cpu-quick" / "quick").glob("0-*[0-9a-f].json"))
    old.write_bytes(old.read_bytes() + b" ")


def _drop_log(space: Workspace) -> None:
    next((space.records / "cpu-quick" / "mine").glob("0-*.jsonl")).unlink()


def _edit_recipe(space: Workspace) -> None:
    (space.submissions / "mine.toml").write_text(RECIPE.replace("0.05", "0.04"))


def _drop_runs(space: Workspace) -> None:
    shutil.rmtree(space.records / "cpu-quick" / "mine")


def _old_board(space: Workspace) -> None:
    git(space.root, "checkout", "--", "leaderboard/LEADERBOARD.md")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_touch("bench/run.py"), "1 changed file(s) are no part of mine: bench/run.py"),
        (_touch("submissions/other.toml"), "no part of mine"),
        (_touch("leaderboard/tracks/easy.toml"), "no part of mine"),
        (_touch("leaderboard/records/cpu-quick/mine/deep/0-aaaaaaaa.json"), "no part of mine"),
        (_touch("leaderboard/records/cpu-quick/mine/run.py"), "no part of mine"),
        (_touch("leaderboard/records/cpu-quick/mine/4-aaaaaaaa.json"), "stands alone"),
        (_edit_old, "no part of mine"),
        (_drop_log, "stands alone"),
        (_edit_recipe, "another version of mine"),
        (_drop_runs, "no new record"),
        (_lie, "breaks mfu"),
        (_old_board, "is not what the records say"),
    ],
)
def test_what_is_not_exactly_a_submission_is_refused(
    spoil: Callable[[Workspace], None], told: str, space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(space)
    assert told in failed(capsys)


def test_a_committed_record_stays_as_it_is(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SUBMIT, "--commit"]) == 0
    write_once(space.records, *mine(space, 3))
    old = next((space.records / "cpu-quick" / "mine").glob("0-*[0-9a-f].json"))
    old.write_bytes(old.read_bytes() + b" ")
    assert "was edited or removed" in failed(capsys)


def test_outside_git_it_says_so(
    space: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(space.root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(space.root.parent))
    assert "git status" in failed(capsys)
