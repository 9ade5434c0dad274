"""Entropies from counts, on sources whose entropies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.horizon.ngrams import discounted, entropies, keys_between, plug_in, table
from tests.experiments.horizon.sources import BOS, markov, renewal_entropies, renewals, with_bos

CHAIN = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.4, 0.1]])


def chain_entropy() -> float:
    """H of a step of the chain, in nats."""
    values, vectors = np.linalg.eig(CHAIN.T)
    shares = np.real(vectors[:, np.argmax(np.real(values))])
    return float(-(shares / shares.sum()) @ (CHAIN * np.log(CHAIN)).sum(axis=1))


def test_a_markov_chain_is_known_from_one_token_on() -> None:
    train, held_out = (with_bos(markov(60_000, CHAIN, seed), 1000) for seed in (1, 2))
    found = entropies(train, held_out, BOS, 4, 4, 8)
    for each in found.entropies[1:]:
        assert each.plug_in == pytest.approx(chain_entropy(), rel=0.015)
        assert each.held_out == pytest.approx(chain_entropy(), rel=0.015)
        assert not each.is_undersampled
    assert found.entropies[0].held_out > 1.1 * found.entropies[1].held_out
    assert found.losses.shape == (8, 5)
    assert found.losses.mean(axis=0)[1] == pytest.approx(found.entropies[1].held_out, rel=1e-3)


def test_entropies_that_fall_for_long_are_followed() -> None:
    exact = renewal_entropies(1.8, 8)
    train, held_out = (with_bos(renewals(500_000, 1.8, seed), 100_000) for seed in (3, 4))
    found = entropies(train, held_out, BOS, 3, 8, 8)
    for n, each in enumerate(found.entropies):
        assert each.plug_in == pytest.approx(exact[n], rel=0.03)
        assert each.held_out == pytest.approx(exact[n], rel=0.03)


def test_too_little_text_is_told_and_bounded_on_both_sides() -> None:
    random = np.random.default_rng(5)
    train, held_out = (with_bos(random.integers(0, 500, 20_000), 500) for _ in range(2))
    found = entropies(train, held_out, BOS, 501, 3, 8).entropies
    assert [each.is_undersampled for each in found] == [False, True, True, True]
    for each in found[1:]:
        assert each.plug_in < math.log(500) < each.held_out
        assert each.plug_in < each.miller_madow
    assert found[3].missing_mass > 0.99


@given(st.lists(st.integers(0, 3), min_size=8, max_size=80), st.integers(0, 3))
def test_probabilities_of_every_next_token_sum_to_one(tokens: list[int], context: int) -> None:
    ids = np.array([*tokens, 1, 2, 3, 1, 2], np.uint16)
    counts = table(ids, BOS, 4, context)
    asked = keys_between(ids, BOS, context, counts.token_bits, 0, ids.size)
    contexts = asked >> np.uint64(counts.token_bits) << np.uint64(counts.token_bits)
    shorter = np.full(asked.size, 0.25)
    total = sum(discounted(counts, contexts | np.uint64(token), shorter) for token in range(4))
    assert total == pytest.approx(np.ones(asked.size))


def test_keys_are_the_same_only_for_the_same_windows() -> None:
    tokens = np.random.default_rng(6).integers(1, 30, 4000).astype(np.uint16)
    counts = table(tokens, BOS, 30, 3, block=512)
    windows = {tuple(tokens[t : t + 4]) for t in range(tokens.size - 3)}
    assert counts.keys.size == len(windows)
    assert counts.counts.sum() == tokens.size - 3
    assert counts.contexts.size == len({window[:3] for window in windows})


def test_plug_in_of_a_text_that_repeats_itself_is_nothing() -> None:
    tokens = np.tile(np.array([1, 2, 3], np.uint16), 100)
    assert plug_in(table(tokens, BOS, 4, 1))[0] == pytest.approx(0.0, abs=1e-12)


def test_a_text_shorter_than_the_window_has_no_entropies() -> None:
    assert entropies(np.array([1, 2], np.uint16), np.array([1, 2], np.uint16), BOS, 4, 3, 8).entropies == []
