"""Hashes of token pairs: a further one is another, and the first is the op's own."""

from __future__ import annotations

import torch

from kernels.reference import bigram_rows
from model.gpt import BIGRAM_MULTIPLIERS
from tests.model.reference_gpt import FACTORS, pair_rows

VOCAB, ROWS = 32768, 5 * 32768


def test_the_multipliers_are_odd_and_distinct() -> None:
    assert all(multiplier % 2 == 1 for multiplier in BIGRAM_MULTIPLIERS)
    assert len({1, *BIGRAM_MULTIPLIERS}) == 8
    assert list(FACTORS) == [1, *BIGRAM_MULTIPLIERS]


def test_pairs_that_share_a_row_of_one_table_rarely_share_one_of_another() -> None:
    """By chance 200,000 pairs fall together in a row of 163,839 some 120,000 times, twice hardly ever."""
    ids = torch.randint(VOCAB, (200_000,), generator=torch.Generator().manual_seed(0))
    tables = [torch.tensor(pair_rows(ids, ROWS, number)) for number in range(len(FACTORS))]
    assert torch.equal(tables[0], bigram_rows(ids[None], ROWS)[0])
    of_pairs = (ids[:-1] * VOCAB + ids[1:]).unique().numel()
    for i, one in enumerate(tables):
        assert 0.6 * ROWS < one.unique().numel() < 0.8 * ROWS  # 1 - exp(-200,000 / 163,839) = 0.705
        for other in tables[:i]:
            both = (one[1:].long() * ROWS + other[1:]).unique().numel()
            assert of_pairs - both < 60  # chance: 200,000^2 / 2 / 163,839^2 = 0.7
