"""A prepared corpus on disk: token ids and document offsets as memory maps, and the facts that identify it.

Files of the folder (integers in the machine's order, which is little-endian everywhere this runs):
    train.tokens, validation.tokens      uint16 or uint32, documents in order, each starting with <|bos|>
    train.offsets, validation.offsets    int64 [documents + 1], the token at which each document starts
    validation.sizes                     int64 [documents], UTF-8 bytes of the raw text
    validation.sha256                    the documents' SHA-256 in hex, one a line: the validation set
    byte_lengths                         int32 [vocab_size], bytes of each token
    tokenizer.json, facts.json
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench.data.storage import sha256_file
from bench.errors import DataError

# Raise it when the bytes of any file change for the same input.
FORMAT = "prepared-1"


class StoredFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Size and hash of one file of the folder."""

    bytes: int
    sha256: str


class SplitFacts(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Counts of one split; `text_bytes` is the raw UTF-8, `num_tokens` includes one <|bos|> a document."""

    num_documents: int
    num_tokens: int
    text_bytes: int


class PreparedFacts(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a record says about the data of its run.

    `shingle_overlap` is the share of the validation text's 64-byte blocks that occur anywhere in the
    training text; exact copies of validation documents (`num_duplicates_removed`) are gone before.
    """

    format: str
    corpus_sha256: str
    tokenizer_sha256: str
    validation_sha256: str
    vocab_size: int
    bos_id: int
    train: SplitFacts
    validation: SplitFacts
    num_duplicates_removed: int
    num_validation_blocks: int
    shingle_overlap: float
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class TokenSplit:
    """Tokens of one split and the int64 [documents + 1] offsets at which its documents start."""

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    offsets: npt.NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return self.offsets.size - 1


@dataclass(frozen=True)
class Prepared:
    """An opened prepared corpus; arrays are read-only views of files."""

    folder: Path
    facts: PreparedFacts
    train: TokenSplit
    validation: TokenSplit
    validation_sizes: npt.NDArray[np.int64]
    byte_lengths: npt.NDArray[np.int32]

    @property
    def bos_id(self) -> int:
        """The id of `<|bos|>`."""
        return self.facts.bos_id

    @property
    def text_sha256(self) -> str:
        """Hash of the corpus and its tokenizer together: the same tokens have the same."""
        both = f"{self.facts.corpus_sha256}/{self.facts.tokenizer_sha256}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, kept with the tokens that it made."""
        return self.folder / "tokenizer.json"

    def validation_documents(self) -> tuple[str, ...]:
        """The SHA-256 of each validation document, in order."""
        return tuple((self.folder / "validation.sha256").read_text().split())


def prepared_folder(data_folder: Path, corpus_sha256: str, tokenizer_sha256: str) -> Path:
    """Where the prepared form of this corpus by this tokenizer is kept."""
    key = hashlib.sha256(f"{FORMAT}/{corpus_sha256}/{tokenizer_sha256}".encode()).hexdigest()
    return data_folder / "prepared" / key[:16]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def open_prepared(folder: Path, *, verify_hashes: bool = False) -> Prepared:
    """Opens a prepared corpus; every file must have its size, and its hash where `verify_hashes`.

    Raises:
        DataError: not prepared, or a file is missing, truncated or changed.
    """
    hint = f"delete {folder} and run again: it is made anew"
    try:
        facts = msgspec.json.decode((folder / "facts.json").read_bytes(), type=PreparedFacts)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"no prepared corpus in {folder}: {error}", hint) from error
    for name, stored in facts.files.items():
        _check_file(folder / name, stored, verify_hashes, hint)
    dtype = token_dtype(facts.vocab_size)
    return Prepared(
        folder=folder,
        facts=facts,
        train=TokenSplit(_map(folder / "train.tokens", dtype), _map(folder / "train.offsets", np.int64)),
        validation=TokenSplit(
            _map(folder / "validation.tokens", dtype), _map(folder / "validation.offsets", np.int64)
        ),
        validation_sizes=_map(folder / "validation.sizes", np.int64),
        byte_lengths=_map(folder / "byte_lengths", np.int32),
    )


def _check_file(path: Path, stored: StoredFile, verify_hashes: bool, hint: str) -> None:
    size_bytes = path.stat().st_size if path.is_file() else -1
    if size_bytes != stored.bytes:
        found = "missing" if size_bytes < 0 else f"{size_bytes:,} bytes"
        raise DataError(f"{path} is {found}, not {stored.bytes:,} bytes", hint)
    if verify_hashes and sha256_file(path) != stored.sha256:
        raise DataError(f"{path} has changed since it was prepared", hint)


def _map(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    # A plain array over the map: slicing numpy.memmap itself runs Python code for each slice.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
