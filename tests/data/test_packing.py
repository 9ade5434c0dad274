"""Packing: equal, row by row, to the plain statement of the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import packing
from bench.data.packing import Int64s, Packing, epoch_order

Row = list[tuple[int, int]]


def naive_rows(offsets: Int64s, capacity: int, order_of: Callable[[int], Int64s]) -> Iterator[Row]:
    """Best fit by linear search over a plain list, as the algorithm is described."""

    def batches() -> Iterator[list[int]]:
        epoch = 0
        while True:
            order = order_of(epoch).tolist()
            for start in range(0, len(order), packing.REFILL_DOCUMENTS):
                yield order[start : start + packing.REFILL_DOCUMENTS]
            epoch += 1

    size = np.diff(offsets).tolist()
    waiting: list[int] = []
    source = batches()
    while True:
        row: Row = []
        filled = 0
        while filled < capacity:
            while len(waiting) < packing.BUFFER_DOCUMENTS:
                waiting.extend(next(source))
            fitting = [place for place, document in enumerate(waiting) if size[document] <= capacity - filled]
            if fitting:
                place = max(fitting, key=lambda place: (size[waiting[place]], -place))
            else:
                place = min(range(len(waiting)), key=lambda place: (size[waiting[place]], place))
            document = waiting.pop(place)
            taken = min(size[document], capacity - filled)
            row.append((int(offsets[document]), int(offsets[document]) + taken))
            filled += taken
        yield row


def _offsets(lengths: list[int]) -> Int64s:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _rows(plan: Packing, first: int, stop: int) -> list[Row]:
    rows = plan.rows(stop)
    return [list(rows.pieces(row, row + 1)) for row in range(first, stop)]


@pytest.mark.parametrize("shuffle", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    capacity=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    buffer_documents=st.integers(1, 60),
    refill_documents=st.integers(1, 20),
)
def test_rows_equal_the_naive_algorithm(
    shuffle: bool, lengths: list[int], capacity: int, seed: int, buffer_documents: int, refill_documents: int
) -> None:
    offsets = _offsets(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BUFFER_DOCUMENTS", buffer_documents)
        patch.setattr(packing, "REFILL_DOCUMENTS", refill_documents)
        patch.setattr(packing, "_MIN_GROWTH_ROWS", 8)

        def order(epoch: int) -> Int64s:
            return epoch_order(len(lengths), seed, epoch) if shuffle else np.arange(len(lengths))

        oracle = naive_rows(offsets, capacity, order)
        plan = Packing(offsets, capacity, seed=seed, shuffle=shuffle)
        for row in _rows(plan, 0, 60):
            assert row == next(oracle)


def test_rows_equal_the_naive_algorithm_at_full_size() -> None:
    lengths = np.random.Generator(np.random.PCG64(3)).lognormal(5, 1, 3000).astype(int).clip(1, 4000).tolist()
    offsets = _offsets(lengths)
    oracle = naive_rows(offsets, 513, lambda epoch: epoch_order(3000, 11, epoch))
    plan = Packing(offsets, 513, seed=11, shuffle=True)
    assert _rows(plan, 0, 1500) == [next(oracle) for _ in range(1500)]  # into the second epoch


def test_a_longer_plan_starts_with_the_shorter_one() -> None:
    offsets = _offsets([5, 9, 2, 30, 7, 7] * 50)
    stepwise = Packing(offsets, 17, seed=1, shuffle=True)
    for num_rows in (1, 2, 1500, 4000):
        stepwise.rows(num_rows)
    at_once = Packing(offsets, 17, seed=1, shuffle=True)
    assert _rows(stepwise, 0, 4000) == _rows(at_once, 0, 4000)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=50), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_rows_are_full_and_made_of_document_starts(lengths: list[int], capacity: int) -> None:
    offsets = _offsets(lengths)
    starts = set(offsets[:-1].tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MIN_GROWTH_ROWS", 1)
        rows = _rows(Packing(offsets, capacity, seed=0, shuffle=True), 0, 20)
    for row in rows:
        assert sum(end - start for start, end in row) == capacity
        assert all(start in starts and end > start for start, end in row)


def test_every_document_is_drawn_once_an_epoch() -> None:
    # Documents as long as a row: each fills one, so rows are the order of documents itself.
    offsets = _offsets([4] * 500)
    drawn = [row[0][0] // 4 for row in _rows(Packing(offsets, 4, seed=9, shuffle=True), 0, 1500)]
    expected = np.concatenate([epoch_order(500, 9, epoch) for epoch in range(3)]).tolist()
    assert drawn == expected


def test_orders_are_permutations_that_seed_and_epoch_change() -> None:
    orders = {(seed, epoch): epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order.tolist()) == list(range(1000)) for order in orders.values())
    assert len({order.tobytes() for order in orders.values()}) == 4
    assert epoch_order(6, 42, 0).tolist() == [0, 3, 1, 4, 2, 5]  # records depend on it
