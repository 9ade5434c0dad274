"""The evaluation bundle: its files by manifest, from a folder or unzipped once from nanochat's download.

A bundle is what its manifest says, file by file; a folder of another content brings a `manifest.json` of its
own, and its scores carry that manifest's hash in their metric id.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from bench.data.manifest import FileName, Sha256
from bench.data.storage import locked, sha256_file, write_all, write_atomic, writing
from bench.data.transport import DEFAULT_RETRY, Retry, Transient, open_url, read_chunks, retrying
from bench.errors import DataError

PUBLISHED = Path(__file__).parents[2] / "data" / "manifests" / "core-bundle.json"
MAX_ZIP_BYTES = 1 << 30
MAX_FILE_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 20
_PATH = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,4}\Z"  # no "..", no root, no drive

BundlePath = Annotated[str, msgspec.Meta(pattern=_PATH, max_length=200)]


class BundleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    path: BundlePath
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every file of a bundle, and where its zip is published; `url` is empty where it is not."""

    name: FileName
    url: str
    source: str
    zip_folder: str
    files: tuple[BundleFile, ...]

    @property
    def sha256(self) -> str:
        """Identity of the content: the files' paths and hashes, not where they come from."""
        lines = sorted(f"{file.sha256}  {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Bundle(msgspec.Struct, frozen=True):
    """A folder whose every file was found to be the manifest's."""

    folder: Path
    manifest: BundleManifest
    is_published: bool

    def read(self, path: str) -> bytes:
        """A file's bytes.

        Raises:
            DataError: the manifest has no such file, or it cannot be read.
        """
        if path not in {file.path for file in self.manifest.files}:
            raise DataError(f"the bundle {self.folder} has no {path}", "its manifest lists every file")
        try:
            return (self.folder / path).read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {self.folder / path}: {error.strerror}", "check the folder"
            ) from error


def read_manifest(path: Path) -> BundleManifest:
    """A manifest from its JSON; DataError where it is absent or malformed."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=BundleManifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"cannot read the bundle's manifest {path}: {error}", "restore the file") from error
    if len({file.path for file in manifest.files}) != len(manifest.files):
        raise DataError(f"{path} lists a file twice", "restore the file")
    return manifest


def open_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, every file's hash checked.

    Raises:
        DataError: a file is missing or is not the manifest's.
    """
    published = read_manifest(PUBLISHED)
    own = folder / "manifest.json"
    manifest = read_manifest(own) if own.is_file() else published
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            raise DataError(
                f"the bundle {folder} lacks {file.path}",
                "leave --bundle out to download it, or name the folder that holds core.yaml",
            )
        if path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
            raise DataError(
                f"{path} is not the manifest's (SHA-256 {file.sha256[:16]}...)",
                "a bundle of another content needs a manifest.json of its own",
            )
    return Bundle(folder, manifest, manifest.sha256 == published.sha256)


def fetch_bundle(
    data_folder: Path, manifest: BundleManifest | None = None, retry: Retry = DEFAULT_RETRY
) -> Bundle:
    """The published bundle, downloaded and unzipped on the first call.

    Raises:
        DataError: the network stays away, or the zip does not hold the manifest's files.
    """
    manifest = manifest or read_manifest(PUBLISHED)
    home = data_folder / "core"
    folder = home / f"bundle-{manifest.sha256[:16]}"
    with locked(home / ".lock"):
        if not (folder / ".whole").is_file():
            archive = _fetch_zip(manifest.url, home, retry)
            try:
                unzip(archive, manifest, folder)
                write_atomic(folder / ".whole", manifest.sha256.encode())
            finally:
                archive.unlink()  # a zip that is not the manifest's would be found again by the next attempt
    return open_bundle(folder)


def _fetch_zip(url: str, home: Path, retry: Retry) -> Path:
    part, archive = home / "bundle.zip.part", home / "bundle.zip"
    if not archive.exists():
        retrying(lambda: _download(url, part, retry), retry, threading.Event(), lambda: _size(part))
        os.replace(part, archive)
    return archive


def unzip(archive: Path, manifest: BundleManifest, folder: Path) -> None:
    """Take the manifest's files, and nothing else, out of a zip into `folder`.

    A member is written to the manifest's path, never to its own, and never beyond the manifest's size.

    Raises:
        DataError: not a zip, or a file is missing, doubled, no plain file, or of another content.
    """
    hint = "run the command again to download it anew, or name a folder with --bundle"
    try:
        with zipfile.ZipFile(archive) as opened:
            members: dict[str, list[zipfile.ZipInfo]] = {}
            for info in opened.infolist():
                members.setdefault(info.filename, []).append(info)
            for file in manifest.files:
                name = str(PurePosixPath(manifest.zip_folder, file.path))
                found = members.get(name, [])
                if len(found) != 1 or not _is_plain(found[0]):
                    raise DataError(f"{archive}: {len(found)} members {name}, expected one plain file", hint)
                _extract(opened, found[0], file, folder / file.path, hint)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{archive} is not a whole zip: {error}", hint) from error


def _is_plain(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was not made on Unix
    return kind in (0, stat.S_IFREG) and not info.is_dir() and not info.flag_bits & 1  # 1: encrypted


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, file: BundleFile, path: Path, hint: str) -> None:
    data, digest = bytearray(), hashlib.sha256()
    with opened.open(info) as member:
        # One byte more than promised shows a lying header without unpacking a bomb.
        while len(data) <= file.bytes and (chunk := member.read(min(_CHUNK_BYTES, file.bytes + 1))):
            data += chunk
            digest.update(chunk)
    if len(data) != file.bytes or digest.hexdigest() != file.sha256:
        raise DataError(f"{info.filename} in the zip is not the manifest's {file.path}", hint)
    write_atomic(path, bytes(data))


def _download(url: str, archive: Path, retry: Retry) -> None:
    """Append to `archive` what is missing of it; raises Transient when the source stops before."""
    have_bytes = _size(archive)
    response = open_url(url, None, retry, have_bytes)
    resumes = response.status == 206
    length = response.headers.get("Content-Length") or "0"
    total_bytes = (have_bytes if resumes else 0) + (int(length) if length.isdecimal() else 0)
    if total_bytes > MAX_ZIP_BYTES:
        raise DataError(f"{url}: {total_bytes:,} bytes, at most {MAX_ZIP_BYTES:,} expected", "check the URL")
    with writing(archive, total_bytes):
        archive.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            archive, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if resumes else os.O_TRUNC), 0o644
        )
    try:
        for chunk in read_chunks(response):
            with writing(archive, total_bytes):
                write_all(descriptor, chunk)
            if _size(archive) > MAX_ZIP_BYTES:
                raise DataError(f"{url}: more than {MAX_ZIP_BYTES:,} bytes", "check the URL")
    finally:
        os.close(descriptor)
    if _size(archive) < total_bytes:
        raise Transient(f"{url}: {_size(archive):,} of {total_bytes:,} bytes arrived")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
