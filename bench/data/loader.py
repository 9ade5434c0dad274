"""Training batches: a pure function of (step, micro-step, rank), made ahead of time by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import msgspec
import numpy as np
import torch

from bench.data.packing import Packing
from bench.data.prefetch import Prefetcher
from bench.data.prepared import Prepared
from bench.spec.batch_ramp import BatchRamp, constant


class Cursor(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which micro-batch this is; `msgspec.to_builtins` makes it JSON."""

    step: int
    micro: int


@dataclass(frozen=True)
class Batch:
    """int64 [B, T] inputs and the tokens that follow them; contiguous views of one buffer.

    Both are int64: cross-entropy takes no other targets, training and evaluation compile to one graph, and
    the copy of one buffer takes microseconds either way.
    """

    buffer: torch.Tensor  # int64 [2, B, T]
    cursor: Cursor

    @property
    def inputs(self) -> torch.Tensor:
        """int64 [B, T]."""
        return self.buffer[0]

    @property
    def targets(self) -> torch.Tensor:
        """int64 [B, T], inputs shifted by one."""
        return self.buffer[1]

    def to(self, device: torch.device) -> Batch:
        """The batch on `device` by one copy, asynchronous where the buffer is pinned.

        The pinned buffer may be dropped at once: torch's host allocator reuses it only after the copy.
        """
        return Batch(self.buffer.to(device, non_blocking=self.buffer.is_pinned()), self.cursor)


@dataclass(frozen=True)
class Progress:
    """What the rows handed out so far, on all ranks, have covered of the training text.

    Attributes:
        epochs_seen: documents placed over documents there are.
        unique_tokens: tokens seen at least once; less than the text while documents are cropped.
        tokens: predictions trained on, repeated ones included.
    """

    epochs_seen: float
    unique_tokens: int
    tokens: int


class Loader:
    """Endless training micro-batches of one rank, from the cursor on.

    Row r of (step, micro, rank) is row ((step x accumulation + micro) x world_size + rank) x rows_per_batch
    + r of the packing, so a step has the same rows however its batch is split over ranks and micro-steps.

    Args:
        accumulation: micro-batches a step, or how their number grows: then step x accumulation is the number
            of those before.
    """

    def __init__(
        self,
        prepared: Prepared,
        sequence_length: int,
        rows_per_batch: int,
        accumulation: int | BatchRamp,
        rank: int,
        world_size: int,
        seed: int,
        device_pin: bool,
        *,
        depth: int = 4,
    ) -> None:
        assert 0 <= rank < world_size
        self._ramp = constant(accumulation) if isinstance(accumulation, int) else accumulation
        assert min(sequence_length, rows_per_batch, self._ramp.micros(0)) >= 1
        self._tokens = prepared.train.tokens
        self._offsets = prepared.train.offsets
        self._packing = Packing(self._offsets, sequence_length + 1, seed=seed, shuffle=True)
        self._planning = threading.Lock()
        self._shape = (rows_per_batch, sequence_length)
        self._rank, self._world_size = rank, world_size
        self._device_pin, self._depth = device_pin, depth
        self._next = Cursor(step=0, micro=0)
        self._ahead: Prefetcher[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            self._ahead = Prefetcher(self._from(self._next), self._depth)
        batch = next(self._ahead)
        self._next = self._after(batch.cursor)
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cursor(self) -> Cursor:
        """The micro-batch that comes next."""
        return self._next

    def seek(self, step: int) -> None:
        """Continues with the first micro-batch of `step`."""
        self.close()
        self._next = Cursor(step=step, micro=0)

    def close(self) -> None:
        """Ends the thread; iterating again starts another."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def batch_at(self, cursor: Cursor) -> Batch:
        """The micro-batch at `cursor`; depends on nothing else but the constructor's arguments."""
        num_rows, sequence_length = self._shape
        first = (self._micro_index(cursor) * self._world_size + self._rank) * num_rows
        with self._planning:
            rows = self._packing.rows(first + num_rows)
        scratch = np.empty((num_rows, sequence_length + 1), dtype=self._tokens.dtype)
        pieces = [self._tokens[start:end] for start, end in rows.pieces(first, first + num_rows)]
        np.concatenate(pieces, out=scratch.reshape(-1))
        buffer = torch.empty((2, num_rows, sequence_length), dtype=torch.int64, pin_memory=self._device_pin)
        view = buffer.numpy()
        view[0], view[1] = scratch[:, :-1], scratch[:, 1:]
        return Batch(buffer, cursor)

    def progress(self) -> Progress:
        """Coverage up to, and without, the next micro-batch; linear in the documents seen."""
        num_rows, sequence_length = self._shape
        total_rows = self._micro_index(self._next) * self._world_size * num_rows
        with self._planning:
            rows = self._packing.rows(total_rows)
        num_segments = int(rows.row_segments_start[total_rows])
        longest = np.zeros(self._packing.num_documents, dtype=np.int64)
        documents = np.searchsorted(self._offsets, rows.segment_offset[:num_segments])
        np.maximum.at(longest, documents, rows.segment_length[:num_segments])
        return Progress(num_segments / longest.size, int(longest.sum()), total_rows * sequence_length)

    def _micro_index(self, cursor: Cursor) -> int:
        return self._ramp.micro_index(cursor.step) + cursor.micro

    def _after(self, cursor: Cursor) -> Cursor:
        if cursor.micro + 1 < self._ramp.micros(cursor.step):
            return Cursor(step=cursor.step, micro=cursor.micro + 1)
        return Cursor(step=cursor.step + 1, micro=0)

    def _from(self, cursor: Cursor) -> Iterator[Batch]:
        while True:
            yield self.batch_at(cursor)
            cursor = self._after(cursor)
