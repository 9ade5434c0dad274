"""Fetching pinned files: parallel, resumable, verified, and never half there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import msgspec

from bench.data.manifest import FileEntry, Manifest
from bench.data.storage import locked, sha256_file, sync_folder, write_all, write_atomic, writing
from bench.data.transport import DEFAULT_RETRY, Retry, Transient, open_url, read_chunks, retrying
from bench.errors import DataError

_CHUNK_BYTES = 1 << 20


class Verified(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """That a file had this hash when it had this size and time: saves hashing it for every run."""

    sha256: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Job:
    manifest: Manifest
    folder: Path
    endpoint: str
    token: str | None
    retry: Retry
    stop: threading.Event


def fetch(
    manifest: Manifest,
    entries: Sequence[FileEntry],
    folder: Path,
    *,
    endpoint: str,
    token: str | None = None,
    workers: int = 8,
    retry: Retry = DEFAULT_RETRY,
    on_file: Callable[[FileEntry], None] | None = None,
) -> tuple[Path, ...]:
    """Brings `entries` into `folder` and returns their paths; on return every one is whole and verified.

    `endpoint` is a hub (`https://...`), or a folder or `file://` address that holds the files by name.
    A second fetch into the folder waits for the first. `on_file` hears of each file as it is verified.

    Raises:
        DataError: no hash in the manifest, wrong content, no room, or a network that stays away.
    """
    unpinned = [entry.name for entry in entries if entry.sha256 is None]
    if unpinned:
        message = f"{manifest.name}: no SHA-256 for {unpinned[0]}"
        raise DataError(message, f"python -m bench data pin {manifest.name}")
    job = _Job(manifest, folder, endpoint, token, retry, threading.Event())
    with locked(folder / ".lock"):
        missing = [entry for entry in entries if not is_verified(folder, entry)]
        _check_room(folder, missing)
        _fetch_all(job, missing, workers, on_file)
    return tuple(folder / entry.name for entry in entries)


def is_verified(folder: Path, entry: FileEntry) -> bool:
    """Whether the file is there with the manifest's size and hash; hashes it only where it has changed."""
    path = folder / entry.name
    if not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    stat = path.stat()
    seal = _seal_path(path)
    try:
        known = msgspec.json.decode(seal.read_bytes(), type=Verified)
    except (OSError, msgspec.MsgspecError):
        known = None
    if known is None or (known.bytes, known.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        known = Verified(sha256=sha256_file(path), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
        write_atomic(seal, msgspec.json.encode(known))
    return known.sha256 == entry.sha256


def _seal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _part_path(folder: Path, entry: FileEntry) -> Path:
    return folder / f"{entry.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(folder: Path, missing: Sequence[FileEntry]) -> None:
    needed_bytes = sum(entry.bytes - min(entry.bytes, _size(_part_path(folder, entry))) for entry in missing)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise DataError(
            f"no room in {folder}: {needed_bytes:,} bytes needed, {free_bytes:,} free",
            "free space there, fetch fewer shards, or choose another data folder",
        )


def _fetch_all(
    job: _Job, missing: Sequence[FileEntry], workers: int, on_file: Callable[[FileEntry], None] | None
) -> None:
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running = {pool.submit(_fetch_one, job, entry): entry for entry in missing}
        try:
            for future in as_completed(running):
                future.result()
                if on_file is not None:
                    on_file(running[future])
        finally:
            # On a failure or Ctrl-C the others stop at their next chunk; their parts stay and are resumed.
            job.stop.set()
            pool.shutdown(cancel_futures=True)


def _fetch_one(job: _Job, entry: FileEntry) -> None:
    part = _part_path(job.folder, entry)
    resumed = part.exists()
    retrying(lambda: _advance(job, entry, part), job.retry, job.stop, lambda: _size(part))
    found = sha256_file(part)
    if found != entry.sha256 and resumed:
        # A part left by another revision is likelier than a bad server: once more from the first byte.
        part.unlink()
        retrying(lambda: _advance(job, entry, part), job.retry, job.stop, lambda: _size(part))
        found = sha256_file(part)
    if found != entry.sha256:
        part.unlink()
        message = f"{entry.name}: SHA-256 {found[:16]}... is not the manifest's {str(entry.sha256)[:16]}..."
        raise DataError(
            message, f"the source at {job.endpoint} serves another file; pin again only if you trust it"
        )
    path = job.folder / entry.name
    with writing(path, entry.bytes):
        os.replace(part, path)
        sync_folder(job.folder)
    assert is_verified(job.folder, entry)


def _advance(job: _Job, entry: FileEntry, part: Path) -> None:
    """Appends to `part` until it has the entry's size; raises Transient when the source stops before."""
    have_bytes = _size(part)
    if have_bytes != entry.bytes or not part.exists():
        start, chunks = _open(job, entry, have_bytes if have_bytes < entry.bytes else 0)
        _append(job, entry, part, start, chunks)
    if _size(part) != entry.bytes:
        have_bytes = _size(part)
        if have_bytes > entry.bytes:
            part.unlink()
        raise Transient(f"{entry.name}: {have_bytes:,} of {entry.bytes:,} bytes arrived")


def _append(job: _Job, entry: FileEntry, part: Path, start: int, chunks: Iterator[bytes]) -> None:
    with writing(part, entry.bytes):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        written_bytes = start
        for chunk in chunks:
            with writing(part, entry.bytes):
                write_all(descriptor, chunk)
            written_bytes += len(chunk)
            if job.stop.is_set() or written_bytes > entry.bytes:
                break
        with writing(part, entry.bytes):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(job: _Job, entry: FileEntry, have_bytes: int) -> tuple[int, Iterator[bytes]]:
    """The byte the source really starts from, and what follows."""
    local = _local_folder(job.endpoint)
    if local is not None:
        return have_bytes, _file_chunks(local / entry.name, have_bytes)
    manifest = job.manifest
    url = (
        f"{job.endpoint.rstrip('/')}/datasets/{manifest.repository}/resolve/"
        f"{manifest.revision}/{quote(entry.name)}"
    )
    response = open_url(url, job.token, job.retry, have_bytes)
    served = str(response.headers.get("Content-Range"))
    resumes = response.status == 206 and served.startswith(f"bytes {have_bytes}-")
    return (have_bytes if resumes else 0), read_chunks(response)


def _local_folder(endpoint: str) -> Path | None:
    if endpoint.startswith("file://"):
        return Path(url2pathname(urlsplit(endpoint).path))
    return None if "://" in endpoint else Path(endpoint)


def _file_chunks(path: Path, start: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise DataError(message, "the folder must hold the manifest's files") from error
