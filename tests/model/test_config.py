"""Window and value embedding patterns, and the padded vocabulary."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import padded_vocab, value_embedding_layers, window_sizes


@given(vocab=st.integers(1, 2**20))
def test_the_vocabulary_is_padded_to_the_next_multiple(vocab: int) -> None:
    padded = padded_vocab(vocab)
    assert padded % 64 == 0
    assert vocab <= padded < vocab + 64


def test_nanochats_patterns() -> None:
    assert window_sizes("SSSL", 6, 2048, 512) == (512, 512, 512, 2048, 512, 2048)
    assert window_sizes("L", 3, 64, 16) == (64, 64, 64)
    assert value_embedding_layers("alternate", 5) == (0, 2, 4)
    assert value_embedding_layers("alternate", 4) == (1, 3)
    assert value_embedding_layers("none", 4) == ()


@given(
    pattern=st.text("SL", min_size=1, max_size=5),
    depth=st.integers(1, 30),
    lengths=st.tuples(st.integers(1, 99), st.integers(1, 99)),
)
def test_windows_tile_the_pattern_and_end_long(pattern: str, depth: int, lengths: tuple[int, int]) -> None:
    short, long = min(lengths), max(lengths)
    sizes = window_sizes(pattern, depth, long, short)
    assert len(sizes) == depth
    assert sizes[-1] == long
    assert all(sizes[i] == {"S": short, "L": long}[pattern[i % len(pattern)]] for i in range(depth - 1))


@pytest.mark.parametrize("depth", range(1, 9))
def test_the_last_layer_has_a_value_embedding_and_no_two_neighbours_do(depth: int) -> None:
    layers = value_embedding_layers("alternate", depth)
    assert layers[-1] == depth - 1
    assert all(b - a == 2 for a, b in pairwise(layers))
    assert layers[0] in (0, 1)
