"""Pairs of tokens a lag apart, counted sparsely: what a covariance is made of. Imports no torch.

A pair lies within one document; <|bos|> itself is in none, for it marks a place and is no part of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counting = tuple[npt.NDArray[Any], Ints]  # distinct keys, rising, and how often each occurs
# Positions counted at once: 100 MB of text are two such blocks, and the memory of a block is bounded.
BLOCK = 1 << 24


class Pairs(NamedTuple):
    """Distinct pairs in rising order of (first, second), as compressed rows, with how often each occurs."""

    vocab_size: int
    rows: Ints  # the first tokens that occur, rising
    starts: Ints  # [rows], where each row's columns start
    columns: Ints  # the second tokens
    counts: Floats
    num_pairs: int

    @property
    def first(self) -> Floats:
        """Share of the pairs that each token is the first of, [vocab_size]."""
        shares = np.zeros(self.vocab_size)
        shares[self.rows] = np.add.reduceat(self.counts, self.starts) / self.num_pairs
        return shares

    @property
    def second(self) -> Floats:
        """Share of the pairs that each token is the second of, [vocab_size]."""
        return np.bincount(self.columns, self.counts, self.vocab_size) / self.num_pairs


def pairs_between(tokens: Tokens, bos_id: int, lag: int, start: int, stop: int) -> tuple[Tokens, Tokens]:
    """First and second tokens of the pairs whose first lies in [start, stop)."""
    seen = np.asarray(tokens[start : stop + lag])
    if seen.size <= lag:
        return seen[:0], seen[:0]
    breaks = np.cumsum(seen == bos_id, dtype=np.int32)
    first, second = seen[:-lag], seen[lag:]
    whole = (breaks[lag:] == breaks[:-lag]) & (first != bos_id)
    return first[whole], second[whole]


def blocks(num_positions: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive blocks."""
    for start in range(0, num_positions, size):
        yield start, min(start + size, num_positions)


def runs(ordered: npt.NDArray[Any]) -> Ints:
    """Where each run of equal values of an ordered array starts."""
    if not ordered.size:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))


def counted(keys: npt.NDArray[Any]) -> Counting:
    """Distinct keys, rising, and how often each occurs; sorts the argument in place."""
    keys.sort()
    starts = runs(keys)
    return keys[starts], np.diff(np.append(starts, keys.size))


def merged(one: Counting, other: Counting) -> Counting:
    """Two countings as one, in time linear in the larger."""
    keys, counts = one
    if not keys.size:
        return other
    places = np.searchsorted(keys, other[0])
    is_known = keys[np.minimum(places, keys.size - 1)] == other[0]
    counts = counts.copy()
    counts[places[is_known]] += other[1][is_known]
    fresh = ~is_known
    return np.insert(keys, places[fresh], other[0][fresh]), np.insert(counts, places[fresh], other[1][fresh])


def count_pairs(tokens: Tokens, bos_id: int, vocab_size: int, lag: int, block: int = BLOCK) -> Pairs:
    """The pairs of a split at one lag; memory grows with a block and with the distinct pairs only."""
    found = (pairs_between(tokens, bos_id, lag, start, stop) for start, stop in blocks(tokens.size, block))
    return _summed(found, vocab_size)


def count_shuffled(tokens: Tokens, bos_id: int, vocab_size: int, seed: int, block: int = BLOCK) -> Pairs:
    """Pairs of equally many tokens drawn without order: what chance alone correlates."""
    random = np.random.default_rng(seed)
    found = (pairs_between(tokens, bos_id, 1, start, stop) for start, stop in blocks(tokens.size, block))
    return _summed(((first, random.permutation(second)) for first, second in found), vocab_size)


def _summed(found: Iterable[tuple[Tokens, Tokens]], vocab_size: int) -> Pairs:
    total: Counting = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
    for first, second in found:
        total = merged(total, counted(_keys(first, second, vocab_size)))
    return _compressed(total, vocab_size)


def _keys(first: Tokens, second: Tokens, vocab_size: int) -> npt.NDArray[Any]:
    """first x vocab_size + second, in 32 bits where they hold it: sorting is what counting costs."""
    dtype = np.dtype(np.uint32 if vocab_size <= 1 << 16 else np.uint64)
    keys: npt.NDArray[Any] = first.astype(dtype)
    keys *= dtype.type(vocab_size)
    keys += second
    return keys


def _compressed(found: Counting, vocab_size: int) -> Pairs:
    first, columns = np.divmod(found[0].astype(np.int64), vocab_size)
    starts = runs(first)
    counts = found[1].astype(np.float64)
    return Pairs(vocab_size, first[starts], starts, columns, counts, int(found[1].sum()))
