"""What the tests of this folder share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def commit(root: Path, message: str) -> None:
    """Commit all there is."""
    for words in (["add", "."], ["commit", "--quiet", "--no-verify", "-m", message]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit and a user's settings that would change a diff."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("read me\n")
    (tmp_path / ".gitattributes").write_text("*.py diff=shout\n")
    for words in (
        ["init", "--quiet"],
        ["config", "user.name", "t"],
        ["config", "user.email", "t@example.org"],
        ["config", "diff.external", "false"],
        ["config", "diff.shout.textconv", "false"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    commit(tmp_path, "one")
    return tmp_path
