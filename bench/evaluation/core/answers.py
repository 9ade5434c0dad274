"""From a row's losses to an answer: the one rule that the engine and the plain evaluation share.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from bench.evaluation.core.prompts import Encoded


class Answers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task's items in order.

    `predictions` are choices; of language modelling 0 is right and 1 wrong. A margin is above 0 where the
    answer is right: nats a token by which the right choice leads the best other one, or of language modelling
    the least lead of an answer's token over the best other token.
    """

    predictions: list[int]
    margins: list[float]
    correct: list[bool]


def choose(losses: Sequence[float], gold: int) -> tuple[int, float]:
    """(choice of the least mean loss, the lowest index of equal ones; lead of `gold` over the best other).

    A choice without tokens of its own, one that starts another, has no loss: NaN. Python's `min` keeps a
    first NaN and passes over a later one, and nanochat chooses by it.
    """
    chosen = losses.index(min(losses))
    others = [loss for index, loss in enumerate(losses) if index != gold and not math.isnan(loss)]
    if math.isnan(losses[gold]) or not others:
        return chosen, 0.0
    return chosen, min(others) - losses[gold]


def is_language_modeling(encoded: Encoded) -> bool:
    """Whether the item's one span is to be predicted exactly."""
    return encoded.gold < 0
