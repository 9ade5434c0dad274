"""Files on disk: whole or absent, locked while written, and disk faults as DataError."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import DataError

# EFBIG is what a file size limit (ulimit -f) gives, EDQUOT a quota: the same fault to a person.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns the system's refusal to write `path` into a DataError naming the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"no room for {path}: {needed_bytes:,} bytes needed"
            raise DataError(message, "free space there, or choose another data folder") from error
        message = f"cannot write {path}: {error.strerror or error}"
        raise DataError(
            message, "check the path and its permissions, or choose another data folder"
        ) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes every byte; a raw write may stop short on a nearly full disk before it fails."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes `path` so that a reader, or a run after a crash, sees all of it or none of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(partial, data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Writes a new file and flushes it to the device; not atomic by itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable; without it a power cut can undo the rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`, waiting for it; the kernel frees it when the holder dies."""
    with writing(path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The file's SHA-256 as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
