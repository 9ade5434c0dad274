"""The readers of what strangers send, as functions of bytes that may end in a BenchError and nothing else."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.errors import BenchError
from bench.records.rules import findings
from bench.records.schema import decode, encode, file_stem
from bench.records.store import read
from bench.spec.plan import make_plan
from bench.spec.submission import load, short_name
from bench.spec.track import load_tracks
from tests.spec.recipes import CPU, H100X8, ROOT, SUBMISSIONS, TRACKS

LONGEST_S = 1.0  # of processor time: on shared cores the wall says nothing
READ_FROM = (
    ROOT / "bench",
    ROOT / "submissions",
    ROOT / "leaderboard" / "tracks",
    Path(sys.prefix),
    Path(sys.base_prefix),
)
NAMED_TRACKS = load_tracks(TRACKS)
BY_NAME = {named.name: named for named in NAMED_TRACKS}


class FilesOpened:
    """An audit hook that keeps the paths opened while it is active."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.paths is not None and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove"):
            path = arguments[0]
            if isinstance(path, str | bytes):
                self.paths.append(os.fsdecode(path))


OPENED = FilesOpened()
_HOOKED: list[bool] = []


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Nothing outside the folder and the project's own data is touched, and nothing takes a second."""
    if not _HOOKED:  # Python has no way to remove a hook: one for the process
        sys.addaudithook(OPENED)
        _HOOKED.append(True)
    gc.disable()  # a collection of all that earlier tests left took 1.4 s once
    OPENED.paths, start_s = [], time.thread_time()
    try:
        yield
    finally:
        opened, OPENED.paths = OPENED.paths, None
        gc.enable()
    spent_s = time.thread_time() - start_s
    assert spent_s < LONGEST_S, f"took {spent_s:.2f} s"
    for path in (Path(one).absolute() for one in opened):
        assert any(path.is_relative_to(home) for home in (folder, *READ_FROM)), f"touched {path}"


def read_recipe(content: bytes, folder: Path) -> int:
    """Load a recipe and plan it on one of the tracks; returns the exit code a command would have."""
    path = folder / "stranger.toml"
    path.write_bytes(content)
    try:
        with watched(folder):
            submission = load(path, SUBMISSIONS)
            short_name(submission.recipe)
            named = NAMED_TRACKS[len(content) % len(NAMED_TRACKS)]
            machine = CPU if named.track.hardware.device_kind == "cpu" else H100X8
            msgspec.json.encode(make_plan(submission, named, machine))
            return 0
    except BenchError as error:
        return _code(error)


def read_record(content: bytes, log: bytes, folder: Path) -> int:
    """Read a record and apply every rule; one that can be read gets the name it would have."""
    home = folder / "cpu-quick" / "quick"
    home.mkdir(parents=True, exist_ok=True)
    stem = "0-00000000"
    try:
        with watched(folder):
            record = decode(content)
            stem, content = file_stem(record), encode(record)
    except (ValueError, RecursionError):  # what `read` makes a VerificationFailed
        pass
    path = home / f"{stem}.json"
    path.write_bytes(content)
    path.with_suffix(".events.jsonl").write_bytes(log)
    try:
        with watched(folder):
            [found] = findings([read(path)], BY_NAME)
            return 8 if any(finding.refuses for finding in found) else 0
    except BenchError as error:
        return _code(error)
    finally:
        path.unlink()
        path.with_suffix(".events.jsonl").unlink()


def _code(error: BenchError) -> int:
    assert error.hint, f"no hint: {error.message}"
    return error.exit_code
