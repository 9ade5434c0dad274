"""The event log of a run: one JSON line an event, each chained to the one before. Imports no torch.

Keys follow MLPerf's logging where it has one (run_start, run_stop, eval_accuracy), so an exporter is short.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import DataError, VerificationFailed

GENESIS = "0" * 64


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line: `hash` is SHA-256 of the previous line's hash and this line's canonical JSON without it."""

    key: str
    time_s: float
    value: dict[str, Any]
    hash: str


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(Event)
_HASH_LENGTH = len(b',"hash":"%s"}' % GENESIS.encode())


def chained(previous_hash: str, key: str, time_s: float, value: dict[str, Any]) -> Event:
    """The event that follows `previous_hash`."""
    body = _body(key, time_s, value)
    return Event(key=key, time_s=time_s, value=value, hash=_hash(previous_hash, body))


def _body(key: str, time_s: float, value: dict[str, Any]) -> bytes:
    """An event's line without its hash."""
    return _ENCODER.encode({"key": key, "time_s": time_s, "value": value})


def _hash(previous_hash: str, body: bytes) -> str:
    return hashlib.sha256(previous_hash.encode() + body).hexdigest()


class EventLog:
    """Appends events to a file; `sync` brings every line so far to the disk, as before a checkpoint.

    Args:
        path: created if absent.
        resume_at: (bytes, tip) of the log at the checkpoint a resumed run starts from; the rest is cut.
    """

    def __init__(self, path: Path, resume_at: tuple[int, str] | None = None) -> None:
        self.path = path
        self.tip = GENESIS
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume_at:
                _require_prefix(path, *resume_at)
            self._file = path.open("r+b" if resume_at else "wb")
            if resume_at:
                self._file.truncate(resume_at[0])
                self._file.seek(resume_at[0])
                self.tip = resume_at[1]
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", "the runs folder must be writable") from error

    @property
    def num_bytes(self) -> int:
        """Length so far."""
        return self._file.tell()

    def append(self, key: str, time_s: float, **value: Any) -> None:
        """Add one event."""
        event = chained(self.tip, key, round(time_s, 6), value)
        try:
            self._file.write(_ENCODER.encode(event) + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror}", "free disk space and run with --resume"
            ) from error
        self.tip = event.hash

    def sync(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


def _require_prefix(path: Path, num_bytes: int, tip: str) -> None:
    """Refuse to continue a log that does not lead to the checkpoint: the chain would break there."""
    found, data = GENESIS, path.read_bytes()[:num_bytes]
    for event in read_events(data, path.name):
        found = event.hash
    if len(data) != num_bytes or found != tip:
        raise VerificationFailed(
            f"{path}: does not lead to the checkpoint", "remove the run's folder and start again"
        )


def read_events(data: bytes, source: str) -> list[Event]:
    """Events of a log, each checked against the chain and byte for byte.

    Raises:
        VerificationFailed: the first line that is damaged, dropped, reordered or altered.
    """
    events = _read_at_once(data)
    return list(_read_by_line(data, source)) if events is None else events


def _read_at_once(data: bytes) -> list[Event] | None:
    """The events of a log, or None where anything at all is wrong with it.

    Most of a board of 1,000 records is this: it takes 0.7 of the time that going by line takes.
    """
    try:
        events = _DECODER.decode_lines(data)
    except (ValueError, RecursionError):
        return None
    if _ENCODER.encode_lines(events) != data:
        return None
    tip = GENESIS.encode()
    for line, event in zip(data.split(b"\n"), events, strict=False):
        tip = hashlib.sha256(b"%s%s}" % (tip, line[:-_HASH_LENGTH])).hexdigest().encode()
        if event.hash.encode() != tip:
            return None
    return events


def _read_by_line(data: bytes, source: str) -> Iterator[Event]:
    tip, hint = GENESIS, "the log was edited or cut"
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:  # msgspec's DecodeError, and text that is not UTF-8
            raise VerificationFailed(f"{source}:{number}: not an event: {error}", hint) from error
        body = _body(event.key, event.time_s, event.value)
        tip = _hash(tip, body)
        if b'%s,"hash":"%s"}' % (body[:-1], tip.encode()) != line:
            raise VerificationFailed(f"{source}:{number}: breaks the hash chain", hint)
        yield event
    if lines[-1]:
        raise VerificationFailed(f"{source}:{len(lines)}: not a whole line", hint)
