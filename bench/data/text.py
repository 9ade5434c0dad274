"""From a data set's name to tokens on disk: corpus, tokenizer, prepared tokens, each made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.data.corpus import Corpus, open_corpus, tokenizer_for
from bench.data.prepare import prepare
from bench.data.prepared import Prepared
from bench.spec.recipe import Recipe


def prepared_text(
    dataset: str,
    vocab_size: int,
    folder: Path,
    *,
    validation_bytes: int,
    tokenizer_chars: int,
    shards: int | None = None,
    workers: int = 1,
    on_part: Callable[[int, int], None] | None = None,
) -> tuple[Corpus, Prepared]:
    """The text of a data set and its tokens.

    Args:
        dataset: `stdlib`, `folder:NAME`, or a data set with a manifest.
        folder: the data folder.
        tokenizer_chars: characters of training text that the tokenizer is made from.
        on_part: hears of each shard, (done, total).

    Raises:
        DataError: missing, changed or too small for the vocabulary; or the disk is full.
    """
    corpus = open_corpus(dataset, folder, validation_bytes=validation_bytes, shards=shards, workers=workers)
    tokenizer = tokenizer_for(corpus, vocab_size, folder, tokenizer_chars)
    return corpus, prepare(corpus, tokenizer, folder, workers=workers, on_part=on_part)


def text_of(recipe: Recipe, folder: Path, workers: int) -> tuple[Corpus, Prepared]:
    """The text that a recipe trains on; see `prepared_text`."""
    return prepared_text(
        recipe.data.dataset,
        recipe.model.vocab_size,
        folder,
        validation_bytes=recipe.eval.validation_bytes,
        tokenizer_chars=recipe.data.tokenizer_chars,
        shards=recipe.data.shards,
        workers=workers,
    )
