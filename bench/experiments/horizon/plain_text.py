"""Plain text files as a corpus: documents cut from them, written once as the Parquet shards a corpus has.

Imports no torch.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from bench.data.storage import writing
from bench.errors import DataError

SUFFIX = ".documents"
# WikiText's articles begin with a line ` = Title = `; a section's has more signs.
_HEADING = re.compile(r"^ = [^=\n].*[^=\n] = *\n", re.MULTILINE)
_PIECE_CHARS = 8_000


def corpus_of(dataset: str, data_folder: Path) -> str:
    """The data set to open: `folder:NAME` itself, or, where NAME holds *.txt only, its documents.

    Each file is one shard, in the order of their names; the last is validation, as of every folder.

    Raises:
        DataError: a file is not UTF-8 or cannot be read, or the data folder cannot be written.
    """
    prefix, _, name = dataset.partition(":")
    root = data_folder / name
    files = sorted(root.glob("[!.]*.txt")) if prefix == "folder" and name else []
    if not files or any(root.glob("[!.]*.parquet")):
        return dataset
    target = data_folder / f"{name}{SUFFIX}"
    for path in files:
        shard = target / f"{path.stem}.parquet"
        if not shard.exists() or shard.stat().st_mtime_ns < path.stat().st_mtime_ns:
            _write(shard, documents(_read(path)))
    return f"folder:{target.name}"


def documents(text: str) -> list[str]:
    """Articles where the text has WikiText's headings, else whole lines of about 8,000 characters."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    if len(starts) > 1:
        cuts = [0, *starts, len(text)]
        pieces = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
    else:
        pieces = _by_lines(text)
    return [piece for piece in pieces if piece.strip()]


def _by_lines(text: str) -> list[str]:
    pieces, held, num_chars = [], [], 0
    for line in text.splitlines(keepends=True):
        held.append(line)
        num_chars += len(line)
        if num_chars >= _PIECE_CHARS:
            pieces.append("".join(held))
            held, num_chars = [], 0
    return [*pieces, "".join(held)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}", "save it as UTF-8") from error


def _write(path: Path, texts: list[str]) -> None:
    # Imported here: most callers' corpora are Parquet already, and pyarrow takes 0.15 s.
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = path.with_name(f".{path.name}.part")
    with writing(path, sum(map(len, texts))):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), part, row_group_size=1024)
        part.replace(path)
