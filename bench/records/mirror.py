"""A run's events shown in a tracker, by a process of its own that the run neither waits for nor depends on.

The run writes its event log as ever; `bench mirror --live` reads it, at the lowest priority, until the pipe
to it closes, which it does however the run ends. What a tracker raises, where it hangs and how long it takes
to import stay there: the run gets one line of warning, after its record is written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from bench.records.events import Event
from bench.records.trackers import DEFAULTS, Config, open_tracker, points

GRACE_S = 20.0  # to send what is left, once the run is over
MAX_SHOWN = 200
CODE = Path(__file__).resolve().parents[2]


def send(events: Iterable[Event], tracker: str, run: str, folder: Path, config: Config) -> int:
    """Show events in a tracker, which is opened with the first one; returns how many there were.

    Raises:
        DataError: the tracker is not installed.
    """
    opened, num_sent = None, 0
    for event in events:
        num_sent += 1
        if opened is None:
            opened = open_tracker(tracker, run, folder, {**event.value, **config})
        for step, figures in points(event):
            opened.log(step, figures)
    if opened is not None:
        opened.finish()
    return num_sent


@contextmanager
def mirrored(
    tracker: str | None,
    folder: Path,
    data: Path,
    environment: Mapping[str, str],
    warn: Callable[[str], None],
    grace_s: float = GRACE_S,
) -> Iterator[None]:
    """While this is open, the run in `folder` is shown in a tracker; None: in none.

    Args:
        data: the data folder, for the tracker's files.
    """
    if tracker is None:
        yield
        return
    found = find_spec(tracker)  # which imports nothing, and takes any folder of that name for a package
    if found is None or found.origin is None:
        warn(f"{tracker} is not installed; the run goes on without it (python -m pip install {tracker})")
        yield
        return
    with tempfile.TemporaryFile() as said:
        process = _start(tracker, folder, data, environment, said)
        try:
            yield
        finally:
            problem = _finish(process, grace_s)
            if problem:
                hint = f"python -m bench mirror RECORD --tracker {tracker} shows the run again"
                warn(f"{tracker} {problem}{_last_line(said)}; the run is not affected, {hint}")


def _start(
    tracker: str, folder: Path, data: Path, environment: Mapping[str, str], said: IO[bytes]
) -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-m", "bench", "mirror", str(folder), "--tracker", tracker]
    command += ["--live", str(time.time_ns()), "--data", str(data)]
    try:
        return subprocess.Popen(
            command,
            cwd=CODE,
            env={**DEFAULTS, **environment},
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            start_new_session=True,  # an interrupt of the run does not cut it off, a kill takes all of it
        )
    except OSError:
        return None


def _finish(process: subprocess.Popen[bytes] | None, grace_s: float) -> str:
    """End the process, by force if it has to be; what went wrong, or ""."""
    if process is None:
        return "could not be started"
    with suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        return "failed" if process.wait(grace_s) else ""
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"did not finish within {grace_s:g} s"


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    shown = "".join(character for character in told if character.isprintable())[:MAX_SHOWN]
    return f" ({shown.removeprefix('error: ')})" if shown else ""
