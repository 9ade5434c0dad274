"""A task's items as tokens: rendered and tokenised once, in parallel, and kept by what they depend on.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.data.storage import write_atomic
from bench.data.tokenizer import Tokenizer
from bench.evaluation.core.bundle import Bundle
from bench.evaluation.core.prompts import (
    Encoded,
    Tokens,
    common_prefix,
    dclm_examples,
    encode_dclm,
    encode_item,
)
from bench.evaluation.core.tasks import LanguageModeling, Task, read_items

# Raise it when the tokens of any item change for the same bundle and tokenizer.
FORMAT = "core-tokens-1"
SquadRule = Literal["nanochat", "dclm"]
_CHUNK_ITEMS = 64


def encoded_items(
    bundle: Bundle,
    task: Task,
    tokenizer: Tokenizer,
    *,
    max_items: int | None = None,
    squad: SquadRule = "nanochat",
    workers: int = 1,
    cache: Path | None = None,
) -> list[Encoded]:
    """A task's items as tokens, in nanochat's order.

    Args:
        squad: whose rule renders the task `squad`.
        workers: threads; tiktoken leaves the interpreter's lock alone while it works.
        cache: folder of what was tokenised before; a file that cannot be read is made anew.

    Raises:
        DataError: a bad line, a file cut short, or a tokenizer that cannot be scored on this task.
        RecipeError: `max_items` leaves too few examples.
    """
    is_dclm = squad == "dclm" and task.label == "squad"
    key = f"{FORMAT}/{bundle.manifest.sha256}/{tokenizer.sha256}/{task.label}/{max_items}/{is_dclm}"
    path = cache / f"{task.label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz" if cache else None
    if path is not None and path.is_file():
        kept = _unpacked(path.read_bytes())
        if kept is not None:
            return kept
    items = _encode_all(bundle, task, tokenizer, max_items, is_dclm, workers)
    if path is not None:
        write_atomic(path, _packed(items, tokenizer.vocab_size))
    return items


def _encode_all(
    bundle: Bundle, task: Task, tokenizer: Tokenizer, max_items: int | None, is_dclm: bool, workers: int
) -> list[Encoded]:
    items = read_items(bundle, task, max_items, shuffled=not is_dclm)
    shown = dclm_examples(len(items), task.shots) if is_dclm else []

    def one(index: int) -> Encoded:
        item = items[index]
        if not is_dclm or not isinstance(item, LanguageModeling):
            return encode_item(index, items, task, tokenizer)
        examples = [each for other in shown[index] if isinstance(each := items[other], LanguageModeling)]
        return encode_dclm(item, examples, task.continuation_delimiter, tokenizer)

    def some(first: int) -> list[Encoded]:
        return [one(index) for index in range(first, min(first + _CHUNK_ITEMS, len(items)))]

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return [each for chunk in pool.map(some, range(0, len(items), _CHUNK_ITEMS)) for each in chunk]


def _packed(items: Sequence[Encoded], vocab_size: int) -> bytes:
    """All items as one .npz: of the rows of an item what they share is kept once."""
    shared = [common_prefix(item.rows) for item in items]
    flat: list[Tokens] = []
    for item, prefix in zip(items, shared, strict=True):
        flat += [item.rows[0][:prefix], *(row[prefix:] for row in item.rows)]
    file = io.BytesIO()
    np.savez(
        file,
        tokens=np.concatenate(flat).astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32),
        lengths=np.array([len(piece) for piece in flat]),
        num_rows=np.array([len(item.rows) for item in items]),
        spans=np.array([span for item in items for span in item.spans]),
        golds=np.array([item.gold for item in items]),
    )
    return file.getvalue()


def _unpacked(data: bytes) -> list[Encoded] | None:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            tokens, spans = arrays["tokens"].astype(np.uint32), arrays["spans"].tolist()
            return _items(tokens, arrays["lengths"], arrays["num_rows"], spans, arrays["golds"])
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile):
        return None


def _items(
    tokens: Tokens,
    lengths: npt.NDArray[np.int64],
    num_rows: npt.NDArray[np.int64],
    spans: list[tuple[int, int]],
    golds: npt.NDArray[np.int64],
) -> list[Encoded]:
    pieces = iter([tokens[start:end] for start, end in pairwise(np.cumsum([0, *lengths]))])
    places = iter(spans)
    items = []
    for number, gold in zip(num_rows, golds, strict=True):
        prefix = next(pieces)
        rows = tuple(np.concatenate((prefix, next(pieces))) for _ in range(number))
        items.append(Encoded(rows, tuple((s, e) for s, e in (next(places) for _ in rows)), int(gold)))
    return items
