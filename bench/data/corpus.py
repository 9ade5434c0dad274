"""Corpora by name: which shards are read, what they hold, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from bench.data.documents import Document, FileRead, Shard, digest_shard, read_shard
from bench.data.manifest import Manifest, load_manifest, pinned_path, source_names
from bench.data.stdlib_source import candidate_files, is_generated, is_validation, stdlib_root
from bench.data.storage import write_atomic
from bench.data.tokenizer import Tokenizer
from bench.data.workers import map_in_order
from bench.errors import DataError, RecipeError

# Raise it when reading or cutting changes, so that no cached answer of the old rules is used.
_FORMAT = "corpus-1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PYTHON_SHARD_BYTES = 1 << 20
# Below this much a second process costs more than it saves: 0.5 s to start, 150 MB/s to read (2 cores, 2026).
_BYTES_PER_WORKER = 64 << 20
# nanochat's tokenizer training reads this much of a document (scripts/tok_train.py at 92d63d4).
TOKENIZER_DOCUMENT_CHARS = 10_000


class Corpus(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A training and a validation text, read once and identified.

    `sha256` is over one record a document, `t` or `v` and the document's SHA-256, training first, in order;
    `files` are those read, in the same order; validation is its shard's first `num_validation_documents`.
    """

    name: str
    train: tuple[Shard, ...]
    validation: Shard
    num_train_documents: int
    num_validation_documents: int
    train_bytes: int
    validation_bytes: int
    sha256: str
    files: tuple[FileRead, ...]

    def documents(self, split: Literal["train", "validation"]) -> Iterator[Document]:
        """The documents of a split, in order."""
        if split == "validation":
            return islice(read_shard(self.validation), self.num_validation_documents)
        return (document for shard in self.train for document in read_shard(shard))


def open_corpus(
    name: str,
    data_folder: Path,
    *,
    validation_bytes: int,
    shards: int | None = None,
    manifest: Manifest | None = None,
    workers: int = 1,
) -> Corpus:
    """Reads a corpus once and remembers what it found until a file's size or time changes.

    Args:
        name: `stdlib`, `folder:NAME` (Parquet files below the data folder), or a data set with a manifest.
        validation_bytes: validation is the first documents of at most so many UTF-8 bytes; at least one.
        shards: training shards of a data set with a manifest; other corpora have no such choice.
        manifest: instead of the project's own pinned one.

    Raises:
        RecipeError: unknown name, or too many shards.
        DataError: a file missing, unreadable, or of another hash than the manifest's.
    """
    assert validation_bytes > 0
    if manifest is None and name in source_names():
        manifest = load_manifest(pinned_path(name))
    root, names = _listing(name, data_folder, shards, manifest)
    cache = data_folder / "corpora" / f"{_fingerprint(name, validation_bytes, root, names)[:16]}.json"
    corpus = _cached(cache)
    if corpus is None:
        train, validation = _split(name, root, names)
        corpus = _read(name, train, validation, validation_bytes, workers)
        write_atomic(cache, msgspec.json.encode(corpus))
    if manifest is not None:
        _check_manifest(corpus, manifest)
    return corpus


def tokenizer_for(
    corpus: Corpus, vocab_size: int, data_folder: Path, max_chars: int, sha256: str | None = None
) -> Tokenizer:
    """The tokenizer of a corpus: trained once on the start of its training text, then kept.

    Raises:
        DataError: it is not the tokenizer `sha256`, or the text is too small for the vocabulary.
    """
    key = f"{corpus.sha256}/{vocab_size}/{max_chars}/{TOKENIZER_DOCUMENT_CHARS}"
    path = data_folder / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        Tokenizer.train(_training_texts(corpus, max_chars), vocab_size).save(path)
    return Tokenizer.load(path, sha256)


def content_sha256(train_digests: Iterator[bytes], validation_digests: bytes) -> str:
    """The corpus hash from joined 32-byte document digests, shard by shard."""
    content = hashlib.sha256()
    for digests in train_digests:
        content.update(_records(b"t", digests))
    content.update(_records(b"v", validation_digests))
    return content.hexdigest()


def _records(tag: bytes, digests: bytes) -> bytes:
    rows = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    return np.insert(rows, 0, ord(tag), axis=1).tobytes()


def _training_texts(corpus: Corpus, max_chars: int) -> Iterator[str]:
    num_chars = 0
    for document in corpus.documents("train"):
        text = document.text[:TOKENIZER_DOCUMENT_CHARS]
        yield text
        num_chars += len(text)
        if num_chars > max_chars:
            return


def _listing(
    name: str, data_folder: Path, shards: int | None, manifest: Manifest | None
) -> tuple[Path, tuple[str, ...]]:
    """The folder of a corpus and the files in it, in order; the last Parquet file is validation."""
    if name == "stdlib":
        return stdlib_root(), candidate_files(stdlib_root())
    if manifest is not None:
        if shards is None:
            raise RecipeError(f"data.shards is needed for {name}", "say how many training shards to read")
        return data_folder / "shards" / manifest.name, tuple(
            entry.name for entry in manifest.first_shards(shards)
        )
    prefix, _, folder = name.partition(":")
    if prefix != "folder" or _NAME.fullmatch(folder) is None:
        raise RecipeError(f"unknown corpus {name!r}", f"stdlib, folder:NAME, {', '.join(source_names())}")
    root = data_folder / folder
    names = tuple(sorted(path.name for path in root.glob("[!.]*.parquet")))
    if len(names) < 2:
        raise DataError(
            f"{root} holds {len(names)} Parquet files, of the 2 needed at least",
            "one or more for training; the last in name order is validation",
        )
    return root, names


def _fingerprint(name: str, validation_bytes: int, root: Path, names: tuple[str, ...]) -> str:
    """What must not have changed for a cached answer to hold."""
    key = hashlib.sha256(f"{_FORMAT}\n{name}\n{validation_bytes}\n{root}\n".encode())
    for relative in names:
        try:
            stat = os.stat(root / relative)
        except OSError as error:
            shards = max(len(names) - 1, 1)
            raise DataError(
                f"missing: {root / relative}",
                f"bench data fetch {name} --shards {shards}, into the same --data",
            ) from error
        key.update(f"{relative}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return key.hexdigest()


def _cached(path: Path) -> Corpus | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Corpus)
    except (OSError, msgspec.MsgspecError):
        return None  # a cache: what cannot be read is made again


def _split(name: str, root: Path, names: tuple[str, ...]) -> tuple[tuple[Shard, ...], Shard]:
    if name != "stdlib":
        shards = [Shard(kind="parquet", root=str(root), names=(relative,)) for relative in names]
        return tuple(shards[:-1]), shards[-1]
    written = [relative for relative in names if not is_generated((root / relative).read_bytes())]
    held_out = tuple(relative for relative in written if is_validation(relative))
    groups: list[list[str]] = []
    room_bytes = 0
    for relative in written:
        if is_validation(relative):
            continue
        if room_bytes <= 0:
            groups.append([])
            room_bytes = _PYTHON_SHARD_BYTES
        groups[-1].append(relative)
        room_bytes -= (root / relative).stat().st_size
    train = tuple(Shard(kind="python", root=str(root), names=tuple(group)) for group in groups)
    return train, Shard(kind="python", root=str(root), names=held_out)


def _read(
    name: str, train: tuple[Shard, ...], validation: Shard, validation_bytes: int, workers: int
) -> Corpus:
    total_bytes = sum(path.stat().st_size for shard in (*train, validation) for path in shard.paths())
    workers = min(workers, 1 + total_bytes // _BYTES_PER_WORKER)
    files: list[FileRead] = []
    digests: list[bytes] = []
    sizes: list[tuple[int, ...]] = []
    for shard_files, shard_digests, shard_sizes in map_in_order(digest_shard, (*train, validation), workers):
        files.extend(shard_files)
        digests.append(shard_digests)
        sizes.append(shard_sizes)
    totals = np.cumsum(sizes[-1], dtype=np.int64)
    if not totals.size or not sum(map(len, sizes[:-1])):
        raise DataError(f"{name}: no documents to train on, or none to validate on", "add text")
    num_validation = max(1, int(np.searchsorted(totals, validation_bytes, side="right")))
    return Corpus(
        name=name,
        train=train,
        validation=validation,
        num_train_documents=sum(map(len, sizes[:-1])),
        num_validation_documents=num_validation,
        train_bytes=sum(map(sum, sizes[:-1])),
        validation_bytes=int(totals[num_validation - 1]),
        sha256=content_sha256(iter(digests[:-1]), digests[-1][: 32 * num_validation]),
        files=tuple(files),
    )


def _check_manifest(corpus: Corpus, manifest: Manifest) -> None:
    pinned = {entry.name: entry.sha256 for entry in manifest.files}
    for file in corpus.files:
        if file.sha256 != pinned[file.name]:
            raise DataError(
                f"{file.name}: SHA-256 {file.sha256[:16]}... is not the manifest's",
                f"remove it, then: bench data fetch {manifest.name} --shards {len(corpus.files) - 1}",
            )
