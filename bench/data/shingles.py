"""How much of one text occurs in another: blocks of 64 bytes, found at any byte offset by a rolling hash.

A block counts as found when its 64-bit hash is; a false match among 1e10 positions and 1e5 blocks
has a chance below 1e-4, so texts are not compared again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 64
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: floor(2^64 / golden ratio)
_CHUNK_BYTES = 1 << 15  # its hashes (256 KiB) stay in the second-level cache
_SLOTS_PER_BLOCK = 32
_SEPARATOR = b"\xff"  # never part of UTF-8, so no window across two documents equals a block

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class BlockIndex:
    """The blocks sought: distinct hashes, ascending, their counts, a table that rules most offsets out."""

    hashes: Hashes
    counts: npt.NDArray[np.int64]
    table: npt.NDArray[np.bool_]
    shift: np.uint64

    def find(self, texts: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Positions in `hashes` of the blocks that occur anywhere in one of `texts`."""
        if not self.hashes.size:
            return np.empty(0, dtype=np.int64)
        data = np.frombuffer(_SEPARATOR.join(texts), dtype=np.uint8)
        found = [
            self._find_chunk(data[start : start + _CHUNK_BYTES + BLOCK_BYTES - 1])
            for start in range(0, max(0, data.size - BLOCK_BYTES + 1), _CHUNK_BYTES)
        ]
        return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def _find_chunk(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        windows = window_hashes(data)
        slots = (windows >> self.shift).view(
            np.int64
        )  # below 2^26, so the same number; numpy indexes by int64
        possible = windows[self.table.take(slots)]
        positions = np.searchsorted(self.hashes, possible)
        positions[positions == self.hashes.size] = 0
        matches: npt.NDArray[np.int64] = positions[self.hashes[positions] == possible]
        return matches

    def share(self, found: npt.NDArray[np.bool_]) -> float:
        """The share of all blocks, repeated ones counted each time, whose hash is marked in `found`."""
        return float(self.counts[found].sum() / self.counts.sum()) if self.hashes.size else 0.0


def block_hashes(texts: Iterable[bytes]) -> Hashes:
    """The hash of each whole non-overlapping block of 64 bytes of each text, from its start."""
    blocks = [
        window_hashes(np.frombuffer(text, dtype=np.uint8))[::BLOCK_BYTES]
        for text in texts
        if len(text) >= BLOCK_BYTES
    ]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.uint64)


def build_index(hashes: Hashes) -> BlockIndex:
    """An index of blocks from their hashes."""
    distinct, counts = np.unique(hashes, return_counts=True)
    bits = min(26, max(16, int(distinct.size * _SLOTS_PER_BLOCK).bit_length()))
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, dtype=np.bool_)
    table[distinct >> shift] = True
    return BlockIndex(distinct, counts, table, shift)


def window_hashes(data: npt.NDArray[np.uint8]) -> Hashes:
    """uint64 [n - 63]: the hash of each window of 64 bytes, sum of r(byte j) x M^(63 - j) modulo 2^64.

    Built by doubling: a window of 2k bytes is its first k times M^k plus its last k, so six steps do.
    """
    hashes: Hashes = _byte_values().take(data)
    width = 1
    while width < BLOCK_BYTES:
        power = np.uint64(pow(_MULTIPLIER, width, 1 << 64))
        joined = hashes[:-width] * power
        joined += hashes[width:]
        hashes, width = joined, 2 * width
    return hashes


@functools.cache
def _byte_values() -> Hashes:
    """A fixed random number for each byte value, so that every byte moves the hash's highest bits."""
    return np.random.PCG64(64).random_raw(256).astype(np.uint64)
