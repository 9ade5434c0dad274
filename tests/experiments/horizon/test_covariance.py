"""Top singular values against numpy's own on the dense matrix, and the floor of chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.covariance import (
    block_sums,
    covariance,
    noise_bound,
    resampled_values,
    top_singular,
)
from bench.experiments.horizon.pairs import count_pairs, count_shuffled
from tests.experiments.horizon.sources import BOS, correlated, top_value, with_bos

V = 9


def dense(tokens: npt.NDArray[np.uint16], lag: int) -> npt.NDArray[np.float64]:
    """C(n), written out."""
    pairs = count_pairs(tokens, BOS, V, lag)
    shares = np.zeros((V, V))
    lengths = np.diff(np.append(pairs.starts, pairs.columns.size))
    shares[np.repeat(pairs.rows, lengths), pairs.columns] = pairs.counts / pairs.num_pairs
    return shares - np.outer(shares.sum(1), shares.sum(0))


@given(st.lists(st.integers(0, V - 1), min_size=12, max_size=200), st.integers(1, 4))
def test_the_value_and_its_vectors_are_those_of_the_dense_matrix(tokens: list[int], lag: int) -> None:
    ids = np.array([1, 2, *tokens, 3, 1, 2, 1, 2], np.uint16)
    matrix = dense(ids, lag)
    found = top_singular(covariance(count_pairs(ids, BOS, V, lag)))
    assert found.value == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6, abs=1e-12)
    assert found.left @ matrix @ found.right == pytest.approx(found.value, rel=1e-6, abs=1e-12)


def test_a_text_of_one_token_has_no_covariance() -> None:
    assert top_singular(covariance(count_pairs(np.full(50, 3, np.uint16), BOS, V, 1))).value < 1e-15


@pytest.mark.parametrize("lag", [1, 4, 16])
def test_the_value_of_a_known_source(lag: int) -> None:
    tokens = with_bos(correlated(400_000, 0.6, seed=1), 4000)
    found = top_singular(covariance(count_pairs(tokens, BOS, V, lag)))
    assert found.value == pytest.approx(top_value(lag, 0.6), rel=0.08)


def test_chance_stays_below_bernsteins_bound_and_shrinks_as_the_root_of_the_text() -> None:
    values = []
    for num in (4000, 64_000):
        tokens = np.random.default_rng(num).integers(1, V, num).astype(np.uint16)
        pairs = count_shuffled(tokens, BOS, V, seed=3)
        values.append(top_singular(covariance(pairs)).value)
        assert 0.1 * noise_bound(pairs.first, pairs.num_pairs) < values[-1]
        assert values[-1] < noise_bound(pairs.first, pairs.num_pairs)
    assert values[0] / values[1] == pytest.approx(4.0, rel=0.35)


def test_blocks_taken_once_each_give_the_value_itself() -> None:
    tokens = with_bos(correlated(30_000, 0.6, seed=2), 500)
    top = top_singular(covariance(count_pairs(tokens, BOS, V, 2)))
    edges = [round(tokens.size * k / 8) for k in range(9)]
    sums = block_sums(tokens, BOS, 2, edges, top)
    weights = np.vstack((np.ones(8), np.eye(8)[0] * 8))
    whole, one_block = resampled_values(sums, weights)
    assert whole == pytest.approx(top.value)
    assert one_block != pytest.approx(top.value, rel=1e-6)
