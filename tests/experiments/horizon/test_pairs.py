"""Counting pairs and adding countings, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.pairs import Pairs, count_pairs, count_shuffled, pairs_between

TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def by_hand(tokens: list[int], lag: int) -> Counter[tuple[int, int]]:
    """Pairs without <|bos|> (0) in them or between them."""
    return Counter(
        (tokens[t], tokens[t + lag]) for t in range(len(tokens) - lag) if 0 not in tokens[t : t + lag + 1]
    )


def as_counter(pairs: Pairs) -> Counter[tuple[int, int]]:
    lengths = np.diff(np.append(pairs.starts, pairs.columns.size))
    first = np.repeat(pairs.rows, lengths)
    return Counter(
        {(int(a), int(b)): int(n) for a, b, n in zip(first, pairs.columns, pairs.counts, strict=True)}
    )


@given(TOKENS, st.integers(1, 8), st.integers(1, 70), st.sampled_from([6, 70_000]))
def test_pairs_are_counted_within_documents_whatever_the_blocks(
    tokens: list[int], lag: int, block: int, vocab_size: int
) -> None:
    pairs = count_pairs(np.array(tokens, np.uint16), 0, vocab_size, lag, block)
    expected = by_hand(tokens, lag)
    assert as_counter(pairs) == expected
    assert pairs.num_pairs == sum(expected.values())


@given(TOKENS)
def test_marginals_are_shares(tokens: list[int]) -> None:
    pairs = count_pairs(np.array(tokens, np.uint16), 0, 6, 1)
    if pairs.num_pairs:
        assert pairs.first.sum() == pytest.approx(1.0)
        assert pairs.second.sum() == pytest.approx(1.0)
        assert pairs.first[0] == pairs.second[0] == 0.0


@given(TOKENS, st.integers(0, 3))
def test_shuffling_keeps_what_is_paired(tokens: list[int], seed: int) -> None:
    ids = np.array(tokens, np.uint16)
    plain, shuffled = count_pairs(ids, 0, 6, 1), count_shuffled(ids, 0, 6, seed)
    assert plain.num_pairs == shuffled.num_pairs
    if plain.num_pairs:
        assert np.array_equal(plain.first, shuffled.first)
        assert np.array_equal(plain.second, shuffled.second)


def test_a_lag_longer_than_the_text_has_no_pairs() -> None:
    first, second = pairs_between(np.array([1, 2, 3], np.uint16), 0, 5, 0, 3)
    assert first.size == second.size == 0
