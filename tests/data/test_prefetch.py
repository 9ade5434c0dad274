"""Prefetching and worker processes: order, faults and endings."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from bench.data.prefetch import Prefetcher
from bench.data.workers import map_in_order
from bench.errors import DataError


def _counting(stop: int, seen: list[int]) -> Iterator[int]:
    for value in range(stop):
        seen.append(value)
        yield value


def test_items_come_in_order_and_end() -> None:
    prefetcher = Prefetcher(iter(range(100)), depth=3)
    assert list(prefetcher) == list(range(100))
    assert list(prefetcher) == []


def test_no_more_than_the_depth_is_made_ahead() -> None:
    seen: list[int] = []
    prefetcher = Prefetcher(_counting(1000, seen), depth=3)
    for expected in range(10):
        assert next(prefetcher) == expected
        assert len(seen) <= expected + 1 + 3 + 1
    prefetcher.close()


def test_close_ends_the_thread_while_its_queue_is_full() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(_counting(10**9, []), depth=1)
    next(prefetcher)
    prefetcher.close()
    assert threading.active_count() == before


def test_what_the_thread_raises_the_consumer_gets_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DataError("broken shard")

    prefetcher = Prefetcher(failing(), depth=4)
    assert next(prefetcher) == 1
    with pytest.raises(DataError, match="broken shard"):
        next(prefetcher)


def _square(value: int) -> int:
    return value * value


def _refuse(value: int) -> int:
    raise DataError(f"refused {value}", "a hint")


def _die(value: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_jobs(workers: int) -> None:
    assert list(map_in_order(_square, list(range(20)), workers)) == [value * value for value in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_workers_error_keeps_its_kind_and_hint(workers: int) -> None:
    with pytest.raises(DataError, match="refused 3") as caught:
        list(map_in_order(_refuse, [3, 4], workers))
    assert caught.value.hint == "a hint"


def test_a_worker_that_dies_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(DataError, match="worker process died"):
        list(map_in_order(_die, [1, 2], 2))
