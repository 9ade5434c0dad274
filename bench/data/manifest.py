"""Manifests: which files a data set consists of, pinned to one revision with sizes and SHA-256."""

from __future__ import annotations

import http.client
import re
import threading
import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import msgspec

from bench.data.storage import write_atomic
from bench.data.transport import DEFAULT_RETRY, Retry, open_url, read_chunks, retrying
from bench.errors import DataError, RecipeError

_FOLDER = Path(__file__).parent / "manifests"
_LINK_NEXT = re.compile(r'<([^>]+)>\s*;[^,]*\brel="?next"?')
_MAX_PAGES = 1000

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")]
Repository = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Revision = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}\Z")]


class Source(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where a data set lives and how its files are called; the last file is validation."""

    name: FileName
    repository: Repository
    file_pattern: str
    num_files: Annotated[int, msgspec.Meta(ge=2)]
    licence: str
    licence_source: str

    def file_names(self) -> tuple[str, ...]:
        """All file names, in shard order."""
        return tuple(self.file_pattern.format(index=index) for index in range(self.num_files))


class FileEntry(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One file; without a `sha256` it can be listed but never fetched."""

    name: FileName
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256 | None


class Manifest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A pinned data set: training files in shard order, then the validation file."""

    name: FileName
    repository: Repository
    revision: Revision
    licence: str
    licence_source: str
    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(min_length=2)]

    def first_shards(self, num_train: int) -> tuple[FileEntry, ...]:
        """The first `num_train` training files and the validation file.

        Raises:
            RecipeError: fewer than one, or more than the data set has.
        """
        available = len(self.files) - 1
        if not 1 <= num_train <= available:
            raise RecipeError(
                f"data.shards = {num_train}: {self.name} has {available} training shards",
                f"choose 1 to {available}",
            )
        return (*self.files[:num_train], self.files[-1])


def source_names() -> tuple[str, ...]:
    """The data sets this project describes."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_source(name: str) -> Source:
    """The description of a data set by name."""
    if name not in source_names():
        raise RecipeError(f"unknown data set {name!r}", f"known: {', '.join(source_names())}")
    return msgspec.convert(tomllib.loads((_FOLDER / f"{name}.toml").read_text()), Source)


def pinned_path(name: str) -> Path:
    """Where the project keeps the pinned manifest of a data set."""
    return _FOLDER / f"{name}.json"


def load_manifest(path: Path) -> Manifest:
    """Reads a pinned manifest; DataError where it is absent or malformed."""
    hint = f"bench data pin {path.stem}: once, with a network"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise DataError(f"no pinned manifest at {path}", hint) from error
    except (msgspec.MsgspecError, OSError) as error:
        raise DataError(f"unreadable manifest {path}: {error}", hint) from error


def pin(
    source: Source, *, endpoint: str, token: str | None, path: Path, retry: Retry = DEFAULT_RETRY
) -> Manifest:
    """Asks the hub once for the commit, sizes and SHA-256 of a data set and writes them to `path`.

    The hub's tree API lists a commit's files in pages (`Link: <...>; rel="next"`); a file stored by LFS
    carries its content's SHA-256 as `lfs.oid` (https://huggingface.co/docs/hub/api).
    """
    base = f"{endpoint.rstrip('/')}/api/datasets/{source.repository}"
    head = _get(f"{base}/revision/main", token, retry)[0]
    revision = head.get("sha") if isinstance(head, dict) else None
    listed = _tree(f"{base}/tree/{quote(str(revision), safe='')}", token, retry)
    missing = [name for name in source.file_names() if name not in listed]
    if missing:
        raise DataError(
            f"{source.repository} lacks {len(missing)} files, the first is {missing[0]}",
            "compare the source description with the hub",
        )
    document = {
        "name": source.name,
        "repository": source.repository,
        "revision": revision,
        "licence": source.licence,
        "licence_source": source.licence_source,
        "files": [_entry(listed[name]) for name in source.file_names()],
    }
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        message = f"{source.repository}: the hub's answer is not usable: {error}"
        raise DataError(message, "check HF_ENDPOINT") from error
    write_atomic(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return manifest


def _entry(item: dict[str, object]) -> dict[str, object]:
    lfs = item.get("lfs")
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    return {"name": item["path"], "bytes": item.get("size"), "sha256": sha256}


def _tree(url: str, token: str | None, retry: Retry) -> dict[str, dict[str, object]]:
    """All entries of a tree by path, following the pages."""
    listed: dict[str, dict[str, object]] = {}
    page: str | None = url
    for _ in range(_MAX_PAGES):
        if page is None:
            return listed
        items, link = _get(page, token, retry)
        if not isinstance(items, list):
            break
        for item in items:
            if isinstance(item, dict) and "path" in item:
                listed[str(item["path"])] = item
        page = _next_page(page, link)
    raise DataError(f"{url}: not a file list, or one without an end", "check HF_ENDPOINT")


def _next_page(url: str, link: str | None) -> str | None:
    """The next page, asked of the same host: a mirror may repeat the hub's links; the token stays here."""
    match = _LINK_NEXT.search(link or "")
    if match is None:
        return None
    here, there = urlsplit(url), urlsplit(urljoin(url, str(match[1])))
    return urlunsplit((here.scheme, here.netloc, there.path, there.query, ""))


def _get(url: str, token: str | None, retry: Retry) -> tuple[object, str | None]:
    """The decoded JSON at `url` and its Link header."""

    def attempt() -> tuple[bytes, http.client.HTTPMessage]:
        response = open_url(url, token, retry)
        return b"".join(read_chunks(response)), response.headers

    body, headers = retrying(attempt, retry, threading.Event())
    try:
        return msgspec.json.decode(body), headers.get("Link")
    except msgspec.DecodeError as error:
        raise DataError(f"{url}: the answer is not JSON", "check HF_ENDPOINT") from error
