"""A submission as a change of the checkout: its recipe, new records, the board. Imports no torch."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.errors import VerificationFailed
from bench.spec.submission import Submission
from bench.spec.workspace import Workspace

BOARD = tuple(f"leaderboard/{name}" for name in ("LEADERBOARD.md", "index.html", "feed.json", "board.svg"))
PLOTS = "leaderboard/plots/"
LOG_SUFFIX = ".events.jsonl"
MAX_NAMED = 5


class Bundle(NamedTuple):
    """What a submission's change holds; paths are relative to the checkout."""

    branch: str
    message: str
    files: tuple[str, ...]
    records: tuple[str, ...]

    def commands(self) -> list[list[str]]:
        """What git has to be told, in order; it never pushes."""
        return [
            ["git", "switch", "--create", self.branch],
            ["git", "add", "--", *self.files],
            ["git", "commit", "--message", self.message],
        ]

    def lines(self) -> list[str]:
        """The commands as a shell reads them."""
        return [shlex.join(command) for command in self.commands()]


def bundle(space: Workspace, submission: Submission, path: Path) -> Bundle:
    """The change that submits a recipe: what git sees as changed, all of it and nothing else.

    Raises:
        VerificationFailed: the checkout holds other changes, an edited record, or no new one.
    """
    name = f"submissions/{submission.name}.toml"
    if path.absolute() != space.submissions / f"{submission.name}.toml":
        raise VerificationFailed(f"{path} is not {name}", "a submission lies in submissions/")
    changes = _changes(space.root)
    _refuse_foreign(changes, submission.name)
    files = tuple(sorted(changes))
    records = tuple(file for file in files if _is_record(file, submission.name))
    if not records:
        raise VerificationFailed(f"{submission.name} has no new record", f"make bench SUB={name}")
    alone = [file for file in files if file.startswith("leaderboard/records/") and not _has_pair(space, file)]
    if alone:
        raise VerificationFailed(f"{alone[0]} stands alone", "a record and its event log go together")
    tracks = sorted({file.split("/")[2] for file in records})
    message = f"Submit {submission.name}: {len(records)} run(s) on {', '.join(tracks)}"
    return Bundle(f"submit-{submission.name}", message, files, records)


def commit(space: Workspace, made: Bundle) -> None:
    """Carry out the commands: a branch with one commit of exactly these files.

    Raises:
        VerificationFailed: git refuses, in its own words.
    """
    for command in made.commands():
        _git(space.root, *command[1:])


def _changes(root: Path) -> dict[str, str]:
    """Path -> two letters, as `git status` tells them; a renamed file counts under both names."""
    listed = _git(root, "status", "--porcelain=v1", "-z", "--untracked-files=all").split("\0")
    found, entries = {}, iter(listed)
    for entry in entries:
        if entry:
            found[entry[3:]] = entry[:2]
            if "R" in entry[:2] or "C" in entry[:2]:
                found[next(entries)] = entry[:2]
    return found


def _refuse_foreign(changes: dict[str, str], name: str) -> None:
    foreign = sorted(path for path in changes if not _belongs(path, name))
    if foreign:
        shown = ", ".join(foreign[:MAX_NAMED]) + (", ..." if len(foreign) > MAX_NAMED else "")
        raise VerificationFailed(
            f"{len(foreign)} changed file(s) are no part of {name}: {ascii(shown)[1:-1]}",
            "commit them on a branch of their own, or put them aside, and submit from a clean checkout",
        )
    edited = sorted(
        path
        for path, state in changes.items()
        if path.startswith("leaderboard/records/") and state not in ("??", "A ")
    )
    if edited:
        hint = f"git checkout -- {shlex.quote(edited[0])}"
        raise VerificationFailed(f"{edited[0]} was edited or removed", hint)


def _belongs(path: str, name: str) -> bool:
    in_records = path.startswith("leaderboard/records/") and path.split("/")[3:4] == [name]
    is_record = in_records and path.count("/") == 4 and path.endswith((".json", LOG_SUFFIX))
    return path == f"submissions/{name}.toml" or is_record or path in BOARD or path.startswith(PLOTS)


def _is_record(path: str, name: str) -> bool:
    return path.startswith("leaderboard/records/") and path.endswith(".json") and _belongs(path, name)


def _has_pair(space: Workspace, path: str) -> bool:
    stem = path.removesuffix(LOG_SUFFIX).removesuffix(".json")
    return all((space.root / f"{stem}{suffix}").is_file() for suffix in (".json", LOG_SUFFIX))


def _git(root: Path, *arguments: str) -> str:
    hint = "`bench submit` works in a checkout made by git"
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True)
    except OSError as error:
        raise VerificationFailed(f"git: {error.strerror}", hint) from error
    except subprocess.CalledProcessError as error:
        words = " ".join((error.stderr or error.stdout).decode(errors="replace").split())
        raise VerificationFailed(f"git {arguments[0]}: {ascii(words)[1:-1][:200]}", hint) from error
    return done.stdout.decode(errors="surrogateescape")
