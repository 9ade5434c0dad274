"""Provenance: what differs from the commit changes the hash, and nothing else does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.host.provenance import Provenance, is_code_of, provenance


def test_a_clean_checkout_has_its_commit_and_no_hash(checkout: Path) -> None:
    found = provenance(checkout)
    assert len(found.commit) == 40
    assert found.dirty_sha256 == ""


def test_documents_do_not_make_the_code_dirty(checkout: Path) -> None:
    (checkout / "README.md").write_text("other\n")
    (checkout / "notes.txt").write_text("new\n")
    assert provenance(checkout).dirty_sha256 == ""


def test_every_change_of_the_code_changes_the_hash(checkout: Path) -> None:
    hashes = [provenance(checkout).dirty_sha256]
    for name, content in (
        ("run.py", "x = 2\n"),
        ("run.py", "x = 3\n"),
        ("new.py", ""),
        ("new.py", "y = 1\n"),
    ):
        (checkout / "bench" / name).write_text(content)
        hashes.append(provenance(checkout).dirty_sha256)
    assert len(set(hashes)) == len(hashes)
    assert provenance(checkout).dirty_sha256 == hashes[-1]


@pytest.mark.parametrize("name", ["ä.py", "a b.py", 'quo"te.py', "line\nbreak.py"])
def test_any_file_name_is_read(checkout: Path, name: str) -> None:
    (checkout / "bench" / name).write_text("z = 1\n")
    first = provenance(checkout).dirty_sha256
    (checkout / "bench" / name).write_text("z = 2\n")
    assert "" != first != provenance(checkout).dirty_sha256


def test_a_link_to_nowhere_is_hashed_by_its_name(checkout: Path) -> None:
    (checkout / "bench" / "dangling.py").symlink_to(checkout / "nowhere")
    assert provenance(checkout).dirty_sha256


def test_outside_a_checkout_nothing_is_claimed(tmp_path: Path) -> None:
    assert provenance(tmp_path) == Provenance("unknown", "")


def test_a_later_commit_may_run_the_same_code(checkout: Path) -> None:
    first = provenance(checkout)
    assert is_code_of(checkout, first)
    (checkout / "README.md").write_text("other\n")
    commit(checkout)
    assert provenance(checkout).commit != first.commit
    assert is_code_of(checkout, first)
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    assert not is_code_of(checkout, first)
    commit(checkout)
    assert not is_code_of(checkout, first)
    assert not is_code_of(checkout, first._replace(commit="0" * 40))


def commit(folder: Path) -> None:
    """All that changed."""
    for words in (["add", "."], ["commit", "--quiet", "--no-verify", "-m", "more"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
