"""Prompts letter by letter as nanochat's templates give them, and their tokens, spans and cropping."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import DataError
from bench.evaluation.core.bundle import Bundle
from bench.evaluation.core.prompts import (
    Encoded,
    common_prefix,
    crop,
    dclm_examples,
    encode,
    encode_dclm,
    examples_of,
    render,
)
from bench.evaluation.core.tasks import LanguageModeling, MultipleChoice, Schema
from tests.evaluation.core.tiny_bundle import byte_tokenizer, encoded

PICK = MultipleChoice("Q1", ("a", "b "), 1)
WHO = Schema(("x the owl", "x the lamp"), "was late.", 1)
NEXT = LanguageModeling(" \nThe end is\t", " near ")


def test_multiple_choice() -> None:
    assert render(PICK, [], " ") == ["Q1 a", "Q1 b "]
    shown = [MultipleChoice("Q2\n", ("c", "d"), 0), PICK]
    before = "Q2\n\nAnswer: c\n\nQ1\nAnswer: b \n\n"
    assert render(PICK, shown, "\nAnswer: ") == [f"{before}Q1\nAnswer: a", f"{before}Q1\nAnswer: b "]


def test_schema() -> None:
    before = "x the lamp was late.\n\n"
    expected = [f"{before}x the owl was late.", f"{before}x the lamp was late."]
    assert render(WHO, [WHO], " ") == expected


def test_language_modeling_trims_contexts_and_keeps_continuations() -> None:
    assert render(NEXT, [], " ") == ["The end is", "The end is  near "]
    shown = [LanguageModeling("A ", "b ")]
    expected = ["A\nAnswer: b \n\nThe end is\nAnswer:", "A\nAnswer: b \n\nThe end is\nAnswer:  near "]
    assert render(NEXT, shown, "\nAnswer: ") == expected


def test_examples_are_each_items_own_draw() -> None:
    """random.Random(1234 + index) over the other items: golden, from CPython's generator."""
    import random

    for index in (0, 3, 11):
        others = [other for other in range(12) if other != index]
        assert examples_of(index, 12, 4) == random.Random(1234 + index).sample(others, 4)
        assert index not in examples_of(index, 12, 11)
    assert examples_of(5, 12, 0) == []


def test_spans() -> None:
    tokenizer = byte_tokenizer()
    choice = encode(render(PICK, [], " "), PICK, tokenizer, "x")
    assert [row.tolist()[0] for row in choice.rows] == [tokenizer.bos_id] * 2
    assert choice.spans == ((4, 5), (4, 6))  # <bos>, Q, 1 and the space are shared
    schema = encode(render(WHO, [], " "), WHO, tokenizer, "x")
    assert [
        tokenizer.decode(row[start:end]) for row, (start, end) in zip(schema.rows, schema.spans, strict=True)
    ] == [" was late."] * 2
    language = encode(render(NEXT, [], " "), NEXT, tokenizer, "x")
    assert tokenizer.decode(language.rows[0][slice(*language.spans[0])]) == "  near "
    assert language.gold == -1


def test_a_continuation_that_changes_the_tokens_before_it_is_an_error() -> None:
    with pytest.raises(DataError, match="item 7"):
        encode(["abc", "abd e"], NEXT, byte_tokenizer(), "task item 7")
    with pytest.raises(DataError, match="item 7"):
        encode(["abc", "abc"], NEXT, byte_tokenizer(), "task item 7")


def test_common_prefix() -> None:
    rows = [np.array(row, dtype=np.uint32) for row in ([1, 2, 3], [1, 2, 4, 5], [1, 2])]
    assert common_prefix(rows) == 2
    assert common_prefix(rows[:1]) == 3
    assert common_prefix([rows[0], rows[1] + 1]) == 0


def test_cropping_keeps_the_end_and_moves_the_span() -> None:
    rows = (np.arange(10, dtype=np.uint32), np.arange(6, dtype=np.uint32))
    cut, lost = crop(Encoded(rows, ((7, 10), (3, 6)), 0), 6, "x")
    assert [row.tolist() for row in cut.rows] == [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5]]
    assert (cut.spans, lost) == (((3, 6), (3, 6)), 1)
    with pytest.raises(DataError, match="an answer fills all 3 tokens"):
        crop(Encoded(rows, ((7, 10), (3, 6)), 0), 3, "x")


def test_dclm_draws_for_all_items_from_one_generator() -> None:
    drawn = dclm_examples(50, 10)
    assert all(len(set(shown)) == 10 and index not in shown for index, shown in enumerate(drawn))
    assert drawn == dclm_examples(50, 10)


def test_dclm_tokenises_examples_context_and_answer_apart() -> None:
    tokenizer = byte_tokenizer()
    shown = [LanguageModeling(" c1 ", "a1 "), LanguageModeling("c2", "a2")]
    item = encode_dclm(LanguageModeling(" c3 ", " a3"), shown, " ", tokenizer)
    (row,), ((start, end),) = item.rows, item.spans
    assert row[0] == tokenizer.bos_id
    assert tokenizer.decode(row[1:start]) == "c1 a1\nc2 a2\nc3"
    assert tokenizer.decode(row[start:end]) == " a3"


def test_the_squad_rule_changes_squad_only(bundle: Bundle) -> None:
    for label in ("pick", "who", "squad"):
        ours, theirs = encoded(bundle, label), encoded(bundle, label, squad="dclm")
        same = all(
            np.array_equal(a, b)
            for x, y in zip(ours, theirs, strict=True)
            for a, b in zip(x.rows, y.rows, strict=True)
        )
        assert same == (label != "squad")
