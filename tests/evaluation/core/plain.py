"""CORE one item at a time, with all logits of all rows: the oracle that the engine is tested and timed by.

It runs the model's own forward pass and nothing else of the engine but the rule of `answers`.

Shapes: N rows of an item, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from bench.evaluation.core.answers import Answers, choose, is_language_modeling
from bench.evaluation.core.prompts import Encoded
from model.gpt import GPT
from model.prefix_cache import positions_beyond


@torch.no_grad()
def answer_plainly(model: GPT, items: Sequence[Encoded], device: torch.device) -> Answers:
    """Answers to a task's items."""
    longest = max(len(row) for item in items for row in item.rows)
    with positions_beyond(model, longest):
        answered = [_answer(model, item, device) for item in items]
    predictions, margins, correct = (list(column) for column in zip(*answered, strict=True))
    return Answers(predictions=predictions, margins=margins, correct=correct)


def _answer(model: GPT, item: Encoded, device: torch.device) -> tuple[int, float, bool]:
    """(prediction, margin, whether it is right)."""
    longest = max(len(row) for row in item.rows)
    tokens_NT = torch.zeros(len(item.rows), longest, dtype=torch.long)
    for padded, row in zip(tokens_NT, item.rows, strict=True):
        padded[: len(row)] = torch.from_numpy(row.astype("int64"))
    tokens_NT = tokens_NT.to(device)
    logits_NTV = model.logits(model(tokens_NT))
    targets_NT = tokens_NT.roll(-1, dims=1)
    if is_language_modeling(item):
        span = slice(item.spans[0][0] - 1, item.spans[0][1] - 1)
        logits_CV, targets_C = logits_NTV[0, span], targets_NT[0, span]
        is_right = bool((logits_CV.argmax(-1) == targets_C).all())
        best_C2, best_ids_C2 = logits_CV.topk(2)
        rival_C = torch.where(best_ids_C2[:, 0] == targets_C, best_C2[:, 1], best_C2[:, 0])
        lead_C = logits_CV.gather(1, targets_C[:, None])[:, 0] - rival_C
        return int(not is_right), float(lead_C.min()), is_right
    losses_NT = F.cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten(), reduction="none")
    losses_NT = losses_NT.view(targets_NT.shape)
    means = [
        float(row[start - 1 : end - 1].mean())
        for row, (start, end) in zip(losses_NT, item.spans, strict=True)
    ]
    prediction, margin = choose(means, item.gold)
    return prediction, margin, prediction == item.gold
