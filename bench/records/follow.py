"""A growing event log read by another process than the one that writes it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from bench.errors import VerificationFailed
from bench.records.events import Event

POLL_S = 1.0


def follow(path: Path, is_over: Callable[[float], bool], since_ns: int = 0) -> Iterator[Event]:
    """Events of a log as they come, until it is over and read to its end.

    Only whole lines are read, and none of a log that an earlier run left behind. Whether the chain holds is
    for those to check who judge the run.

    Args:
        is_over: waits for at most these seconds; whether nothing more will be written.
        since_ns: the log is not read before it is written to after this moment.

    Raises:
        VerificationFailed: a line that is no event.
    """
    offset = 0
    while True:
        over = is_over(POLL_S)  # asked before reading, so that the last lines are not missed
        lines = _whole_lines(path, offset, since_ns)
        offset += len(lines)
        for line in lines.splitlines():
            try:
                yield msgspec.json.decode(line, type=Event)
            except (ValueError, RecursionError) as error:
                raise VerificationFailed(f"{path}: not an event: {error}", "the log was edited") from error
        if over:
            return


def _whole_lines(path: Path, offset: int, since_ns: int) -> bytes:
    """What was added, up to its last newline."""
    try:
        with path.open("rb") as file:
            if path.stat().st_mtime_ns < since_ns:
                return b""
            file.seek(offset)
            added = file.read()
    except FileNotFoundError:
        return b""
    return added[: added.rfind(b"\n") + 1]
