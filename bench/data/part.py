"""One shard's tokens: a folder renamed into place when whole, made in whichever process comes to it.

Files: tokens; lengths (int64, tokens a document, 0 for a removed copy of a validation document); sizes
(int64, UTF-8 bytes); digests (32 bytes a document); found (bool, which distinct validation blocks occur).
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.data.documents import Shard, read_shard
from bench.data.prepared import token_dtype
from bench.data.shingles import BlockIndex, build_index
from bench.data.storage import write_synced, writing
from bench.data.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class PartJob:
    """A shard to tokenise into a part of the corpus under `building`."""

    index: int
    shard: Shard
    num_documents: int | None  # None: all of the shard; a number: validation, the first so many
    building: Path

    @property
    def folder(self) -> Path:
        """The part's folder; it exists only when the part is whole."""
        return self.building / f"{self.index:05d}"


@dataclass(frozen=True)
class _Tools:
    tokenizer: Tokenizer
    blocks: BlockIndex
    validation_digests: frozenset[bytes]


@dataclass
class _PartData:
    """One shard while it is read: a length of 0 tokens marks a removed copy of a validation document."""

    tokens: list[npt.NDArray[Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    found: list[npt.NDArray[np.int64]] = field(default_factory=list)


@functools.lru_cache(maxsize=1)
def _read_tools(building: Path) -> _Tools:
    hashes = np.fromfile(building / "blocks", dtype=np.uint64)
    digests = digest_list((building / "digests").read_bytes())
    return _Tools(Tokenizer.load(building / "tokenizer.json"), build_index(hashes), frozenset(digests))


def digest_list(joined: bytes) -> list[bytes]:
    """The 32-byte digests that were joined."""
    return [joined[start : start + 32] for start in range(0, len(joined), 32)]


def prepare_part(job: PartJob) -> None:
    """Tokenises one shard into its part folder, unless that is there already; runs in a worker."""
    target = job.folder
    if target.exists():
        return
    tools = _read_tools(job.building)
    part = _PartData()
    for texts in _batches(islice((document.text for document in read_shard(job.shard)), job.num_documents)):
        _add_batch(part, texts, tools, is_validation=job.num_documents is not None)
    _write_part(part, tools, target)


def _batches(texts: Iterator[str]) -> Iterator[list[bytes]]:
    """Encoded texts in lists of about a megabyte."""
    batch: list[bytes] = []
    size_bytes = 0
    for text in texts:
        batch.append(text.encode())
        size_bytes += len(batch[-1])
        if size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _add_batch(part: _PartData, texts: list[bytes], tools: _Tools, *, is_validation: bool) -> None:
    digests = [hashlib.sha256(text).digest() for text in texts]
    keeps = [is_validation or digest not in tools.validation_digests for digest in digests]
    kept = [text for text, keep in zip(texts, keeps, strict=True) if keep]
    encoded = tools.tokenizer.encode_batch(text.decode() for text in kept)
    lengths = map(len, encoded)
    part.digests.extend(digests)
    part.sizes.extend(map(len, texts))
    part.lengths.extend(next(lengths) if keep else 0 for keep in keeps)
    dtype = token_dtype(tools.tokenizer.vocab_size)
    part.tokens.extend(tokens.astype(dtype) for tokens in encoded)
    if not is_validation:
        part.found.append(tools.blocks.find(kept))


def _write_part(part: _PartData, tools: _Tools, target: Path) -> None:
    # In a folder of this process's own: after a kill, an old worker may still write while a new one does.
    own = target.with_name(f"{target.name}.{os.getpid()}")
    found = np.zeros(tools.blocks.hashes.size, dtype=np.bool_)
    found[np.concatenate([*part.found, np.empty(0, dtype=np.int64)])] = True
    dtype = token_dtype(tools.tokenizer.vocab_size)
    contents = {
        "tokens": np.concatenate([*part.tokens, np.empty(0, dtype=dtype)]).tobytes(),
        "lengths": np.array(part.lengths, dtype=np.int64).tobytes(),
        "sizes": np.array(part.sizes, dtype=np.int64).tobytes(),
        "digests": b"".join(part.digests),
        "found": found.tobytes(),
    }
    with writing(own, sum(map(len, contents.values()))):
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        for name, data in contents.items():
            write_synced(own / name, data)
        try:
            os.rename(own, target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(own)  # another worker was first, with the same bytes
