"""Prompts as nanochat renders and tokenises them, and llm-foundry's SQuAD as a variant of its own.

nanochat's comment: all tasks match, but for squad, "we get 31% reference is 37%". The 37 % is hardly GPT-2's:
no GPT-2 was found among DCLM's published evaluations, and 0.3737 is there for OLMo-1B
(exp_data/evals/evaluation_olmo_1b_heavy.json). Both read the same file, one answer an item, and both count an
answer of which every token is the likeliest: neither normalises, neither knows answer variants. What differs,
as read in both sources:

- length: DCLM keeps the last 2,048 tokens (eval/mmlu_and_lowvar.yaml), the whole context of OLMo-1B. nanochat
  cropped for GPT-2 alone (base_eval.py, while it loaded such models: before 21a7774) and asked every other
  model beyond its context. SQuAD is the one task where that is usual: its 10-shot prompts have 9.8 kB
  (mean of 529), so 59 % to 86 % of them pass 2,048 tokens at 4.6 to 4.2 bytes a token;
- examples are parted by one newline there, by two in nanochat; other items are drawn, in another order;
- context and answer are tokenised apart there, in one text in nanochat.

The first is the one that singles out SQuAD, and so the likely cause; no run of OLMo-1B has shown it.
`squad="dclm"` follows DCLM in all three.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bench.errors import DataError
from bench.evaluation.core.tasks import Item, LanguageModeling, MultipleChoice, Schema, Task

Tokens = npt.NDArray[np.uint32]
# Each item draws its examples by its own generator (nanochat); llm-foundry has one for the whole task.
FEWSHOT_SEED = 1234
_PART = "\n\n"
_DCLM_PART = "\n"


class Encoder(Protocol):
    """What prompts need of a tokenizer."""

    @property
    def bos_id(self) -> int:
        """The id of `<|bos|>`."""

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text's ids after `<|bos|>`."""


class Encoded(NamedTuple):
    """One item as tokens: a row for each choice, and the span of each row that is scored.

    `gold` is -1 for language modelling: there is one row, and its span is to be predicted exactly.
    """

    rows: tuple[Tokens, ...]
    spans: tuple[tuple[int, int], ...]  # [start, end) in the row; start >= 1
    gold: int


def examples_of(index: int, num_items: int, shots: int) -> list[int]:
    """The items shown before item `index`."""
    if shots == 0:
        return []
    others = [other for other in range(num_items) if other != index]
    return random.Random(FEWSHOT_SEED + index).sample(others, shots)


def render(item: Item, examples: Sequence[Item], delimiter: str) -> list[str]:
    """A prompt for each choice; of language modelling the prompt without and with the continuation."""
    before = "".join(f"{_context(each)}{delimiter}{_answer(each)}{_PART}" for each in examples)
    if isinstance(item, MultipleChoice):
        return [f"{before}{item.query}{delimiter}{choice}" for choice in item.choices]
    if isinstance(item, Schema):
        return [f"{before}{context}{delimiter}{item.continuation}" for context in item.context_options]
    question = f"{before}{_context(item)}{delimiter}"
    # Stripped, or the delimiter's space would be a token of its own that the continuation's word absorbs.
    return [question.strip(), f"{question}{item.continuation}"]


def _context(item: Item) -> str:
    if isinstance(item, MultipleChoice):
        return item.query
    if isinstance(item, Schema):
        return item.context_options[item.gold]
    return item.context.strip()


def _answer(item: Item) -> str:
    return item.choices[item.gold] if isinstance(item, MultipleChoice) else item.continuation


def encode(prompts: Sequence[str], item: Item, tokenizer: Encoder, where: str) -> Encoded:
    """The prompts as tokens.

    Raises:
        DataError: the continuation changes the tokens before it, or adds none.
    """
    rows = tuple(tokenizer.encode_batch(prompts))
    lengths = [len(row) for row in rows]
    if isinstance(item, MultipleChoice):
        start = common_prefix(rows)
        return Encoded(rows, tuple((start, length) for length in lengths), item.gold)
    if isinstance(item, Schema):
        suffix = common_prefix([row[::-1] for row in rows])
        return Encoded(rows, tuple((length - suffix, length) for length in lengths), item.gold)
    without, whole = rows
    if len(without) >= len(whole) or not np.array_equal(without, whole[: len(without)]):
        message = f"{where}: the tokens without the continuation do not start those with it"
        raise DataError(message, "this tokenizer merges across the border: it cannot be scored on this task")
    return Encoded((whole,), ((len(without), len(whole)),), -1)


def common_prefix(rows: Sequence[Tokens]) -> int:
    """How many tokens all rows start with."""
    shortest = min(len(row) for row in rows)
    differs = np.zeros(shortest, dtype=bool)
    for row in rows[1:]:
        differs |= row[:shortest] != rows[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def crop(encoded: Encoded, max_tokens: int, where: str) -> tuple[Encoded, int]:
    """The item with each row's last `max_tokens`, and how many rows lost tokens.

    Raises:
        DataError: what is scored does not fit.
    """
    lost = [max(0, len(row) - max_tokens) for row in encoded.rows]
    if not any(lost):
        return encoded, 0
    spans = tuple((start - cut, end - cut) for (start, end), cut in zip(encoded.spans, lost, strict=True))
    if min(start for start, _ in spans) < 1:
        raise DataError(
            f"{where}: an answer fills all {max_tokens} tokens of the context", "use a longer context"
        )
    rows = tuple(row[cut:] for row, cut in zip(encoded.rows, lost, strict=True))
    return Encoded(rows, spans, encoded.gold), sum(map(bool, lost))


def encode_item(index: int, items: Sequence[Item], task: Task, tokenizer: Encoder) -> Encoded:
    """Item `index` of a task as nanochat would tokenise it."""
    shown = [items[other] for other in examples_of(index, len(items), task.shots)]
    prompts = render(items[index], shown, task.continuation_delimiter)
    return encode(prompts, items[index], tokenizer, f"{task.label} item {index}")


def dclm_examples(num_items: int, shots: int) -> list[list[int]]:
    """llm-foundry's examples of every item: one generator over the whole task, a set's order."""
    generator, drawn = random.Random(FEWSHOT_SEED), []
    for index in range(num_items):
        shown = set(generator.sample(range(num_items), shots))
        if index in shown:
            shown.remove(index)
            while len(shown) < shots:
                other = generator.choice(range(num_items))
                if other != index:
                    shown.add(other)
        drawn.append(list(shown))
    return drawn


def encode_dclm(
    item: LanguageModeling, examples: Sequence[LanguageModeling], delimiter: str, tokenizer: Encoder
) -> Encoded:
    """A language modelling item as llm-foundry tokenises it: examples, context and answer each apart."""
    shown = _DCLM_PART.join(
        f"{each.context.strip()}{delimiter}{each.continuation.strip()}" for each in examples
    )
    context = f"{_DCLM_PART if shown else ''}{item.context.strip()}{delimiter}".rstrip()
    first, second, answer = tokenizer.encode_batch([shown, context, f" {item.continuation.strip()}"])
    before = np.concatenate((first, second[1:]))
    row = np.concatenate((before, answer[1:]))
    return Encoded((row,), ((len(before), len(row)),), -1)
