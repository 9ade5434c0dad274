"""The tokenizer: lossless, exact in bytes, and identified by its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.tokenizer import MIN_VOCAB_SIZE, SPECIAL_TOKENS, Tokenizer
from bench.errors import DataError
from tests.data.shards import texts

CORPUS = texts(200, seed=5)
TOKENIZER = Tokenizer.train(CORPUS, 400)

# Every valid Unicode text: no lone surrogates, which UTF-8 cannot hold.
any_text = st.text(st.characters(exclude_categories=["Cs"]))
EXAMPLES = [
    "", "🦉🏳️\u200d🌈", "\u0301", "\u0301\u0301a", "e\u0301", "\x00\x7f\r\n", "\ufffd", "<|bos|> is text here",
    "123456789", " " * 300, "ა\U0010ffff", "don't WE'LL",
]  # fmt: skip


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_survive_and_weigh_their_bytes(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.byte_lengths[ids].sum() == len(text.encode())
    assert all(token < TOKENIZER.bos_id for token in ids)


@given(any_text)
def test_any_text_survives_and_weighs_its_bytes(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.byte_lengths[ids].sum() == len(text.encode())


def test_every_byte_value_is_a_token_of_one_byte() -> None:
    assert sorted(token for token in _merges(TOKENIZER) if len(token) == 1) == [
        bytes([b]) for b in range(256)
    ]
    assert (TOKENIZER.byte_lengths[: -len(SPECIAL_TOKENS)] > 0).all()


def test_special_tokens_come_last_weigh_nothing_and_start_with_bos() -> None:
    assert TOKENIZER.vocab_size == 400
    assert TOKENIZER.bos_id == 400 - len(SPECIAL_TOKENS)
    assert not TOKENIZER.byte_lengths[TOKENIZER.bos_id :].any()
    assert TOKENIZER.decode([TOKENIZER.bos_id]) == "<|bos|>"


def test_batches_are_single_encodings_with_bos_in_front() -> None:
    for text, ids in zip(EXAMPLES, TOKENIZER.encode_batch(EXAMPLES), strict=True):
        assert ids.tolist() == [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
        assert ids.dtype == np.uint32


def test_training_is_deterministic_and_saving_loses_nothing(tmp_path: Path) -> None:
    again = Tokenizer.train(iter(CORPUS), 400)
    assert again.sha256 == TOKENIZER.sha256
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path, TOKENIZER.sha256)
    assert loaded.sha256 == TOKENIZER.sha256
    assert [loaded.encode(text) for text in EXAMPLES] == [TOKENIZER.encode(text) for text in EXAMPLES]


def test_numbers_are_cut_in_groups_of_two_digits() -> None:
    assert max(len(token) for token in _merges(TOKENIZER) if token.isdigit()) == 2


@pytest.mark.parametrize("vocab_size", [0, MIN_VOCAB_SIZE - 1])
def test_a_vocabulary_below_the_bytes_is_refused(vocab_size: int) -> None:
    with pytest.raises(DataError, match="vocabulary of"):
        Tokenizer.train(CORPUS, vocab_size)


def test_a_text_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="too small for a vocabulary of 5000"):
        Tokenizer.train(["one short text"], 5000)


def test_a_tokenizer_of_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    with pytest.raises(DataError, match=r"is .*, not 0000"):
        Tokenizer.load(path, "0" * 64)


@pytest.mark.parametrize("damage", ["missing", "truncated", "duplicate", "spaced"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    document = json.loads(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "duplicate":
        document["merges"][300] = document["merges"][0]
        path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))
    else:
        path.write_text(json.dumps(document, indent=1))
    with pytest.raises(DataError):
        Tokenizer.load(path)


def test_a_text_that_tiktoken_cannot_take_is_named_by_its_size() -> None:
    spaces = " " * 1_000_000
    for attempt in (lambda: TOKENIZER.encode(spaces), lambda: TOKENIZER.encode_batch([spaces])):
        with pytest.raises(DataError, match="1,000,000 characters"):
            attempt()


def _merges(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer._encoding.decode_single_token_bytes(rank) for rank in range(tokenizer.bos_id)]
