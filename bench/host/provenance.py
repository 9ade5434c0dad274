"""Which code runs: the commit, and a hash of what differs from it. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# What decides a measurement; records, plots and documents may change without changing it.
CODE = ("bench", "kernels", "model", "leaderboard/tracks", "pyproject.toml", "requirements.lock")


# Of those, what runs: neither an editor's leavings nor another track makes it other code.
SOURCES = (
    "bench/**/*.py", "bench/**/*.toml", "bench/**/*.json", "kernels/**/*.py", "model/**/*.py",
    "requirements*.lock",
)  # fmt: skip


class Provenance(NamedTuple):
    """`commit` is "unknown" outside a checkout; `dirty_sha256` is "" when the code is the commit's."""

    commit: str
    dirty_sha256: str


def provenance(root: Path) -> Provenance:
    """Commit and dirty hash of the checkout at `root`."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Provenance("unknown", "")
    # A user's own differ or text conversion must not change the hash, nor run.
    changed = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD", "--", *CODE) or b""
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or b""
    digest = hashlib.sha256(changed)
    files = sorted(name for name in untracked.split(b"\0") if name)
    for name in files:
        path = root / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return Provenance(commit.decode().strip(), digest.hexdigest() if changed or files else "")


def sources_sha256(root: Path) -> str:
    """Hash of the sources that run, committed or not."""
    return files_sha256((path for pattern in SOURCES for path in root.glob(pattern)), root)


def files_sha256(paths: Iterable[Path], root: Path) -> str:
    """Hash of files below `root`, their names included, in any order; hidden ones are left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file() and not path.name.startswith(".")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def is_code_of(root: Path, recorded: Provenance) -> bool:
    """Whether the checkout at `root` runs the code that was recorded, if at another commit."""
    here = provenance(root)
    if here.dirty_sha256 != recorded.dirty_sha256:
        return False
    if here.commit == recorded.commit:
        return True
    return _git(root, "diff", "--no-ext-diff", "--quiet", recorded.commit, "HEAD", "--", *CODE) is not None


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
