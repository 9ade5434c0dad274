"""Documents: the texts of a shard in order, each with where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from bench.data.stdlib_source import cut, decode_source
from bench.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_HINT = "replace the file: fetch it again, or write it as Parquet with a string column `text`"


class Document(NamedTuple):
    """One text and its origin, `file#index`."""

    text: str
    origin: str


class Shard(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Files read in order as one unit of work; `names` are relative to `root`."""

    kind: Literal["parquet", "python"]
    root: str
    names: tuple[str, ...]

    def paths(self) -> tuple[Path, ...]:
        """The files' paths, in order."""
        return tuple(Path(self.root) / name for name in self.names)


class FileRead(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A file as it was read."""

    name: str
    bytes: int
    sha256: str


def read_shard(shard: Shard) -> Iterator[Document]:
    """The documents of a shard, in order.

    Raises:
        DataError: a file is missing, truncated, empty, or has no usable `text` column.
    """
    for name in shard.names:
        data = _read_bytes(Path(shard.root) / name)
        for index, text in enumerate(_texts(shard.kind, name, data)):
            yield Document(text, f"{name}#{index}")


def digest_shard(shard: Shard) -> tuple[tuple[FileRead, ...], bytes, tuple[int, ...]]:
    """Reads a shard once: its files, its documents' SHA-256 (32 bytes each, joined) and UTF-8 sizes."""
    files: list[FileRead] = []
    digests: list[bytes] = []
    sizes: list[int] = []
    for name in shard.names:
        data = _read_bytes(Path(shard.root) / name)
        files.append(FileRead(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        for text in _texts(shard.kind, name, data):
            raw = text.encode()
            digests.append(hashlib.sha256(raw).digest())
            sizes.append(len(raw))
    return tuple(files), b"".join(digests), tuple(sizes)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "fetch it again") from error


def _texts(kind: str, name: str, data: bytes) -> Iterator[str]:
    return cut(decode_source(data)) if kind == "python" else _parquet_texts(name, data)


def _parquet_texts(name: str, data: bytes) -> Iterator[str]:
    # Imported here: 0.15 s that a run on prepared data does not need (2 cores, pyarrow 26, 2026).
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_schema(name, file)
        for group in range(file.num_row_groups):
            for text in file.read_row_group(group, columns=["text"]).column("text").to_pylist():
                if text is None:
                    raise DataError(f"{name}: row group {group} holds a null text", _HINT)
                yield text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not whole Parquet: {str(error).splitlines()[0]}", _HINT) from error


def _check_schema(name: str, file: pq.ParquetFile) -> None:
    import pyarrow as pa

    schema = file.schema_arrow
    if "text" not in schema.names:
        raise DataError(f"{name} has no column `text`, only {', '.join(schema.names)}", _HINT)
    kind = schema.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{name}: column `text` is {kind}, not string", _HINT)
    if file.metadata.num_rows == 0:
        raise DataError(f"{name} holds no documents", _HINT)
