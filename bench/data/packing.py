"""Rows of equal length from documents: nanochat's best-fit packing, planned from lengths alone.

A row holds `capacity` = sequence length + 1 tokens and starts with a document's <|bos|>. A buffer of at
least 1,000 documents, refilled by 128 before each placement, gives the largest document that fits whole;
where none fits, the shortest is cropped to fill the row and its rest is dropped. Ties go to the document that
came first. (nanochat/dataloader.py at 92d63d4; its search is linear in the buffer, this one logarithmic,
with equal results.)

Nothing stops at the end of an epoch: the buffer is carried into the next, whose first refill starts a new
batch of 128. So no document is lost to an epoch's end and every row is complete, as in nanochat's
endless loader.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BUFFER_DOCUMENTS = 1000
REFILL_DOCUMENTS = 128
_MIN_GROWTH_ROWS = 1024
_ARRIVAL_BITS = 40

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """A plan of R rows of S segments: row r is segments row_segments_start[r] to row_segments_start[r + 1].

    Attributes:
        row_segments_start: int64 [R + 1].
        segment_offset: int64 [S], the token at which the segment's document starts.
        segment_length: int32 [S], tokens taken of that document.
    """

    row_segments_start: Int64s
    segment_offset: Int64s
    segment_length: npt.NDArray[np.int32]

    @property
    def num_rows(self) -> int:
        """Rows planned."""
        return self.row_segments_start.size - 1

    def pieces(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, end) token positions of rows `first` to `stop`, in order; together they fill the rows."""
        begin, end = self.row_segments_start[first], self.row_segments_start[stop]
        starts = self.segment_offset[begin:end]
        return zip(starts.tolist(), (starts + self.segment_length[begin:end]).tolist(), strict=True)


class Packing:
    """The endless sequence of rows of one split, planned as far as asked; equal arguments give equal rows."""

    def __init__(self, offsets: Int64s, capacity: int, *, seed: int, shuffle: bool) -> None:
        """Plans over documents at `offsets` (int64 [documents + 1]); without `shuffle`, in corpus order."""
        assert offsets.size >= 2
        assert capacity >= 1
        self._offsets = offsets
        self._capacity = capacity
        self._arrivals = _arrivals(offsets.size - 1, seed, shuffle)
        # length << 40 | arrival, ascending: the best fit by bisection, the shortest at the front
        self._buffer: list[int] = []
        self._num_arrived = 0
        self._offset_of: dict[int, int] = {}
        self._rows = Rows(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return self._offsets.size - 1

    def rows(self, num_rows: int) -> Rows:
        """A plan of at least the first `num_rows` rows; a longer plan starts with every shorter one."""
        if num_rows > self._rows.num_rows:
            # Doubling keeps the copying of earlier rows linear over a run.
            self._extend(max(num_rows, 2 * self._rows.num_rows, _MIN_GROWTH_ROWS) - self._rows.num_rows)
        return self._rows

    def _extend(self, num_rows: int) -> None:
        offsets: list[int] = []
        lengths: list[int] = []
        starts: list[int] = []
        for _ in range(num_rows):
            self._place_row(offsets, lengths)
            starts.append(len(offsets))
        rows = self._rows
        self._rows = Rows(
            np.concatenate(
                (rows.row_segments_start, rows.segment_offset.size + np.array(starts, dtype=np.int64))
            ),
            np.concatenate((rows.segment_offset, np.array(offsets, dtype=np.int64))),
            np.concatenate((rows.segment_length, np.array(lengths, dtype=np.int32))),
        )

    def _place_row(self, offsets: list[int], lengths: list[int]) -> None:
        buffer = self._buffer
        remaining = self._capacity
        while remaining > 0:
            while len(buffer) < BUFFER_DOCUMENTS:
                self._refill()
            after = bisect_left(buffer, (remaining + 1) << _ARRIVAL_BITS)
            if after:
                best = buffer[after - 1] >> _ARRIVAL_BITS
                key = buffer.pop(bisect_left(buffer, best << _ARRIVAL_BITS, 0, after))
            else:
                key = buffer.pop(0)
            taken = min(key >> _ARRIVAL_BITS, remaining)
            offsets.append(self._offset_of.pop(key & ((1 << _ARRIVAL_BITS) - 1)))
            lengths.append(taken)
            remaining -= taken

    def _refill(self) -> None:
        documents = next(self._arrivals)
        starts = self._offsets[documents]
        sizes = self._offsets[documents + 1] - starts
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            self._buffer.append(size << _ARRIVAL_BITS | self._num_arrived)
            self._offset_of[self._num_arrived] = start
            self._num_arrived += 1
        self._buffer.sort()  # two sorted runs, nearly: linear


def epoch_order(num_documents: int, seed: int, epoch: int) -> Int64s:
    """The order of documents in an epoch: the ranks of PCG64's raw output.

    Not Generator.permutation, whose stream numpy may change between versions (NEP 19); raw bits it may not.
    """
    key = hashlib.sha256(f"{seed}/data/{epoch}".encode()).digest()
    raw = np.random.PCG64(int.from_bytes(key, "big")).random_raw(num_documents)
    return np.argsort(raw, kind="stable")


def _arrivals(num_documents: int, seed: int, shuffle: bool) -> Iterator[Int64s]:
    """Batches of 128 document indices, endlessly; an epoch's last batch may be shorter."""
    epoch = 0
    while True:
        order = epoch_order(num_documents, seed, epoch) if shuffle else np.arange(num_documents)
        for start in range(0, num_documents, REFILL_DOCUMENTS):
            yield order[start : start + REFILL_DOCUMENTS]
        epoch += 1
