"""Validation batches under the two definitions of bits per byte, as numpy arrays of int64 [B, T]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.data.packing import Packing
from bench.data.prepared import Prepared

IGNORED = -1
_BUCKET_TOKENS = 64

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DocumentBatch:
    """Rows of one document window each, padded by <|bos|> inputs with ignored targets.

    Attributes:
        inputs: int64 [B, T].
        targets: int64 [B, T], -1 where nothing is scored.
        documents: int64 [B], the document of each row, -1 for a row of padding.
    """

    inputs: Int64s
    targets: Int64s
    documents: Int64s


@dataclass(frozen=True)
class BestFitBatch:
    """Packed rows, every target predicted.

    `num_bytes` is the text of the targets by the tokenizer's byte lengths; special tokens count 0 bytes,
    and nanochat leaves their nats out too (nanochat/loss_eval.py at 92d63d4).
    """

    inputs: Int64s
    targets: Int64s
    num_bytes: int


def document_rows(
    prepared: Prepared,
    sequence_length: int,
    rows_per_batch: int,
    *,
    bucket: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[DocumentBatch]:
    """Every token of every validation document, <|bos|> aside, as a target exactly once.

    A document longer than T predictions continues in a further row whose first input is the last token of the
    row before; its context starts anew there. Divide by the bytes in `prepared.facts.validation.text_bytes`.
    With `bucket`, rows come longest first and a batch is as wide as its longest row rounded up to 64.
    Rank r of w gets batches r, r + w, ...; the last batch is filled up with rows of padding.
    """
    starts, lengths, documents = _windows(prepared.validation.offsets, sequence_length)
    if bucket:
        order = np.argsort(-lengths, kind="stable")
        starts, lengths, documents = starts[order], lengths[order], documents[order]
    tokens = prepared.validation.tokens
    for first in range(rank * rows_per_batch, starts.size, world_size * rows_per_batch):
        chosen = slice(first, first + rows_per_batch)
        width = _width(int(lengths[chosen].max()), sequence_length) if bucket else sequence_length
        inputs = np.full((rows_per_batch, width), prepared.bos_id, dtype=np.int64)
        targets = np.full((rows_per_batch, width), IGNORED, dtype=np.int64)
        origins = np.full(rows_per_batch, -1, dtype=np.int64)
        origins[: documents[chosen].size] = documents[chosen]
        for row, (start, length) in enumerate(
            zip(starts[chosen].tolist(), lengths[chosen].tolist(), strict=True)
        ):
            inputs[row, :length] = tokens[start : start + length]
            targets[row, :length] = tokens[start + 1 : start + length + 1]
        yield DocumentBatch(inputs, targets, origins)


def bestfit_batches(
    prepared: Prepared, sequence_length: int, rows_per_batch: int, num_tokens: int
) -> Iterator[BestFitBatch]:
    """nanochat's validation on one rank: floor(num_tokens / (B x T)) batches, packed in corpus order.

    Goes round the validation documents again where they are too few.
    """
    packing = Packing(prepared.validation.offsets, sequence_length + 1, seed=0, shuffle=False)
    num_batches = num_tokens // (rows_per_batch * sequence_length)
    rows = packing.rows(num_batches * rows_per_batch)
    tokens = prepared.validation.tokens
    for first in range(0, num_batches * rows_per_batch, rows_per_batch):
        pieces = [tokens[start:end] for start, end in rows.pieces(first, first + rows_per_batch)]
        block = np.concatenate(pieces).astype(np.int64).reshape(rows_per_batch, sequence_length + 1)
        targets = np.ascontiguousarray(block[:, 1:])
        num_bytes = int(prepared.byte_lengths[targets].sum(dtype=np.int64))
        yield BestFitBatch(np.ascontiguousarray(block[:, :-1]), targets, num_bytes)


def _windows(offsets: Int64s, sequence_length: int) -> tuple[Int64s, Int64s, Int64s]:
    """Start token, number of predictions and document of each row, in corpus order."""
    predictions = np.diff(offsets) - 1
    rows = -(-predictions // sequence_length)
    documents = np.repeat(np.arange(predictions.size), rows)
    within = np.arange(documents.size) - np.repeat(np.cumsum(rows) - rows, rows)
    starts = offsets[:-1][documents] + within * sequence_length
    lengths = np.minimum(predictions[documents] - within * sequence_length, sequence_length)
    return starts, lengths, documents


def _width(longest: int, sequence_length: int) -> int:
    return min(sequence_length, -(-longest // _BUCKET_TOKENS) * _BUCKET_TOKENS)
