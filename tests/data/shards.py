"""Small real corpora for tests: Parquet shards of invented prose, and a prepared folder made from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.data.corpus import Corpus, open_corpus, tokenizer_for
from bench.data.prepare import prepare
from bench.data.prepared import Prepared

_WORDS = [
    "the",
    "of",
    "and",
    "river",
    "stone",
    "1984",
    "über",
    "naïve",
    "東京",
    "🦉",
    "œuvre",
    "\t\n",
    "def",
    "return",
    "(x)",
    "3.14159",
    "é",
    "don't",
]


def texts(num_documents: int, seed: int, max_words: int = 120) -> list[str]:
    """Documents of random words, some very short; equal seeds give equal texts."""
    chooser = random.Random(seed)
    return [
        " ".join(
            f"{chooser.choice(_WORDS)}{chooser.randrange(99)}" for _ in range(chooser.randrange(1, max_words))
        )
        for _ in range(num_documents)
    ]


def write_shard(path: Path, documents: Sequence[str], column: str = "text", row_group_size: int = 64) -> None:
    """One Parquet shard in nanochat's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(documents, pa.string())}), path, row_group_size=row_group_size)


def write_folder(
    data_folder: Path, name: str = "tiny", num_train: int = 2, documents_a_shard: int = 300
) -> Path:
    """A `folder:` corpus of `num_train` shards and a validation shard of 40 documents."""
    for index in range(num_train):
        write_shard(data_folder / name / f"shard_{index:05d}.parquet", texts(documents_a_shard, index))
    write_shard(data_folder / name / f"shard_{num_train:05d}.parquet", texts(40, 999))
    return data_folder / name


def open_tiny(data_folder: Path, validation_bytes: int = 1 << 30) -> Corpus:
    """The corpus of `write_folder`."""
    return open_corpus("folder:tiny", data_folder, validation_bytes=validation_bytes)


def prepare_tiny(data_folder: Path, vocab_size: int = 320) -> Prepared:
    """Writes, opens and prepares the tiny corpus."""
    write_folder(data_folder)
    corpus = open_tiny(data_folder)
    return prepare(corpus, tokenizer_for(corpus, vocab_size, data_folder, max_chars=10**6), data_folder)
