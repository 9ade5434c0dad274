"""The loader: batches are a pure function of step, micro-step and rank, and rows of the packing."""

from __future__ import annotations

import threading
from itertools import islice

import msgspec
import numpy as np
import pytest
import torch

from bench.data.loader import Cursor, Loader
from bench.data.packing import Packing
from bench.data.prepared import Prepared

T = 32


def _loader(prepared: Prepared, rows: int = 4, accumulation: int = 1, rank: int = 0, world_size: int = 1,
            seed: int = 7, pin: bool = False) -> Loader:  # fmt: skip
    return Loader(prepared, T, rows, accumulation, rank, world_size, seed, pin)


def _rows(prepared: Prepared, num_rows: int, seed: int = 7) -> np.ndarray:
    rows = Packing(prepared.train.offsets, T + 1, seed=seed, shuffle=True).rows(num_rows)
    tokens = [prepared.train.tokens[start:end] for start, end in rows.pieces(0, num_rows)]
    return np.concatenate(tokens).astype(np.int64).reshape(num_rows, T + 1)


def test_batches_are_the_packing_row_by_row(prepared: Prepared) -> None:
    with _loader(prepared) as loader:
        batches = list(islice(loader, 50))
    expected = _rows(prepared, 200)
    assert np.array_equal(torch.cat([batch.inputs for batch in batches]).numpy(), expected[:, :-1])
    assert np.array_equal(torch.cat([batch.targets for batch in batches]).numpy(), expected[:, 1:])
    assert (expected[:, 0] == prepared.bos_id).all()
    assert batches[0].inputs.dtype == batches[0].targets.dtype == torch.int64
    assert batches[0].inputs.is_contiguous()
    assert batches[0].targets.is_contiguous()


@pytest.mark.parametrize(
    ("rows", "accumulation", "world_size"), [(24, 1, 1), (4, 6, 1), (4, 2, 3), (1, 1, 24)]
)
def test_a_step_has_the_same_rows_however_its_batch_is_split(
    prepared: Prepared, rows: int, accumulation: int, world_size: int
) -> None:
    whole = _rows(prepared, 48)
    for step in (1, 0):
        parts = [
            _loader(prepared, rows, accumulation, rank, world_size)
            .batch_at(Cursor(step=step, micro=micro))
            .inputs
            for micro in range(accumulation)
            for rank in range(world_size)
        ]
        assert np.array_equal(torch.cat(parts).numpy(), whole[24 * step : 24 * (step + 1), :-1])


def test_seek_continues_with_equal_bytes(prepared: Prepared) -> None:
    with _loader(prepared, accumulation=3) as loader:
        straight = list(islice(loader, 30))
    with _loader(prepared, accumulation=3) as loader:
        list(islice(loader, 4))
        loader.seek(6)
        assert loader.cursor == Cursor(step=6, micro=0)
        resumed = list(islice(loader, 12))
    for one, other in zip(straight[18:], resumed, strict=True):
        assert one.cursor == other.cursor
        assert torch.equal(one.buffer, other.buffer)


def test_the_cursor_survives_json(prepared: Prepared) -> None:
    with _loader(prepared, accumulation=2) as loader:
        cursors = [batch.cursor for batch in islice(loader, 3)]
    assert cursors == [Cursor(step=0, micro=0), Cursor(step=0, micro=1), Cursor(step=1, micro=0)]
    assert msgspec.json.decode(msgspec.json.encode(cursors), type=list[Cursor]) == cursors


def test_seeds_change_the_order(prepared: Prepared) -> None:
    first = [_loader(prepared, seed=seed).batch_at(Cursor(step=0, micro=0)).inputs for seed in (1, 2)]
    assert not torch.equal(first[0], first[1])


def test_progress_counts_what_was_handed_out(prepared: Prepared) -> None:
    with _loader(prepared) as loader:
        assert loader.progress().tokens == 0
        list(islice(loader, 25))
        progress = loader.progress()
    rows = Packing(prepared.train.offsets, T + 1, seed=7, shuffle=True).rows(100)
    seen = {token for start, end in rows.pieces(0, 100) for token in range(start, end)}
    assert progress.tokens == 100 * T
    assert progress.unique_tokens == len(seen)
    assert progress.epochs_seen == len(list(rows.pieces(0, 100))) / prepared.train.num_documents


def test_unique_tokens_stop_at_the_text(prepared: Prepared) -> None:
    loader = _loader(prepared, rows=512)
    loader.seek(20)
    progress = loader.progress()
    assert progress.epochs_seen > 1
    assert progress.unique_tokens <= prepared.facts.train.num_tokens


def test_close_leaves_no_thread_and_iteration_can_go_on(prepared: Prepared) -> None:
    before = threading.active_count()
    loader = _loader(prepared)
    first = next(loader)
    loader.close()
    assert threading.active_count() == before
    second = next(loader)
    loader.close()
    assert (first.cursor.step, second.cursor.step) == (0, 1)


def test_a_fault_in_the_thread_reaches_the_consumer(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Packing, num_rows: int) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(Packing, "rows", broken)
    loader = _loader(prepared)
    with pytest.raises(OSError, match="disk is gone"):
        next(loader)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: pinned memory and asynchronous copies")
def test_pinned_batches_arrive_unchanged(prepared: Prepared) -> None:
    device = torch.device("cuda")
    with _loader(prepared, pin=True) as loader:
        moved = [batch.to(device) for batch in islice(loader, 200)]
    for batch in moved:
        assert torch.equal(batch.buffer.cpu(), _loader(prepared).batch_at(batch.cursor).buffer)


def test_moving_to_the_cpu_keeps_the_batch(prepared: Prepared) -> None:
    batch = _loader(prepared).batch_at(Cursor(step=3, micro=0))
    assert torch.equal(batch.to(torch.device("cpu")).buffer, batch.buffer)
