"""CORE in batches: stems once, branches after them, the head at the scored positions only.

Batches are made before they are dealt to ranks, so a score does not depend on the number of ranks; on the
batch size it depends within rounding, and answers closer than that are counted (`score.near_ties`).

Shapes: B units, P tokens of a stem, N branches of a unit, C tokens of a branch, D width, M scored positions,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bench.evaluation.core.answers import Answers, choose, is_language_modeling
from bench.evaluation.core.prompts import Encoded
from bench.evaluation.core.units import Batch, batches_of, distinct_rows, padded, units_of
from bench.training.ranks import ALONE, Ranks
from model.gpt import GPT
from model.prefix_cache import Tables, continue_stems, position_tables, read_stems

# Tokens of a batch. At d4 on one core 2,048 was fastest, 1,024 5 % and 16,384 35 % slower (hellaswag).
TOKEN_BUDGET = {"cpu": 2048, "mps": 16384, "cuda": 65536}
# float32 logits at once: 16 MB stay in a CPU's cache.
HEAD_ELEMENTS = {"cpu": 1 << 22, "mps": 1 << 25, "cuda": 1 << 27}
_LAG = 2  # batches in flight: a device works while the next one is put together


class Engine:
    """A model made ready to answer tasks.

    Args:
        max_tokens: the longest row it will be asked, after cropping.
        token_budget: tokens of a batch, padding included.
        compiled: run stems and branches through torch.compile.
    """

    def __init__(
        self,
        model: GPT,
        device: torch.device,
        max_tokens: int,
        *,
        token_budget: int | None = None,
        compiled: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.device, self.ranks = model, device, ranks
        self.token_budget = token_budget or TOKEN_BUDGET[device.type]
        self.tables: Tables = position_tables(model, max_tokens)
        # Dynamic: lengths are rounded, but a task still has dozens of them.
        self.read = torch.compile(read_stems, dynamic=True) if compiled else read_stems
        self.follow = torch.compile(continue_stems, dynamic=True) if compiled else continue_stems

    @torch.no_grad()
    def answer(self, items: Sequence[Encoded], progress: Callable[[int, int], None] | None = None) -> Answers:
        """Answers to a task's items; `progress` hears (tokens done, tokens in all) of this rank."""
        batches = batches_of(
            [unit for index, item in enumerate(items) for unit in units_of(index, item)], self.token_budget
        )
        mine = batches[self.ranks.rank :: self.ranks.size]
        total, done = sum(batch.num_tokens for batch in mine), 0
        # losses, leads and hits of each row, summed over ranks: one of them has it, the others zero
        table = np.zeros((3, len(items), max(len(item.rows) for item in items)))
        with_rivals = any(is_language_modeling(item) for item in items)
        for batch, scores_3M in self._scored(mine, with_rivals):
            _enter(table, batch, scores_3M)
            done += batch.num_tokens
            if progress is not None:
                progress(done, total)
        return answers_from(items, self._summed(table))

    def _scored(
        self, batches: Sequence[Batch], with_rivals: bool
    ) -> Iterator[tuple[Batch, npt.NDArray[np.float32]]]:
        waiting: list[tuple[Batch, Tensor]] = []
        for batch in batches:
            waiting.append((batch, self._score(batch, with_rivals)))
            if len(waiting) >= _LAG:
                ready, scores_3M = waiting.pop(0)
                yield ready, scores_3M.cpu().numpy()
        for ready, scores_3M in waiting:
            yield ready, scores_3M.cpu().numpy()

    def _score(self, batch: Batch, with_rivals: bool) -> Tensor:
        hidden_BNCD = self.hidden(batch)
        places, targets = [], []
        for row, unit in enumerate(batch.units):
            for scored in unit.scored:
                first = (row * batch.num_branches + scored.branch) * batch.branch_tokens + scored.first
                places.append(np.arange(first, first + len(scored.targets)))
                targets.append(scored.targets.astype(np.int64))
        hidden_MD = hidden_BNCD.flatten(0, 2)[self._on_device(np.concatenate(places))]
        return self.head(hidden_MD, self._on_device(np.concatenate(targets)), with_rivals)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states of a batch's branches, [B, N, C, D]."""
        units, N, C = batch.units, batch.num_branches, batch.branch_tokens
        stems_BP = self._on_device(padded([unit.stem for unit in units], len(units), batch.stem_tokens))
        lengths_B = self._on_device(np.array([len(unit.stem) for unit in units]))
        branches = np.stack([padded(unit.branches, N, C) for unit in units])
        stems = self.read(self.model, stems_BP, lengths_B, self.tables)
        return self.follow(self.model, stems, self._on_device(branches), self.tables)

    def head(self, hidden_MD: Tensor, targets_M: Tensor, with_rivals: bool = True) -> Tensor:
        """Of each target its loss in nats, its lead over the best other token, and 1 where it is the argmax.

        float32 [3, M]; a piece of the logits exists at a time. Without rivals the lead stays 0.
        """
        rows = max(HEAD_ELEMENTS[self.device.type] // self.model.config.vocab_size, 1)
        pieces = []
        for hidden, targets in zip(torch.split(hidden_MD, rows), torch.split(targets_M, rows), strict=True):
            logits_MV = self.model.logits(hidden)
            target_M1 = logits_MV.gather(1, targets[:, None])
            loss_M = logits_MV.logsumexp(1) - target_M1[:, 0]
            lead_M, hit_M = torch.zeros_like(loss_M), torch.zeros_like(loss_M)
            if with_rivals:
                hit_M = (logits_MV.argmax(1) == targets).float()
                logits_MV.scatter_(1, targets[:, None], float("-inf"))
                lead_M = target_M1[:, 0] - logits_MV.amax(1)
            pieces.append(torch.stack((loss_M, lead_M, hit_M)))
        return torch.cat(pieces, dim=1)

    def _on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _summed(self, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.ranks.size == 1:
            return table
        shared = torch.from_numpy(table).to(self.device)
        dist.all_reduce(shared, group=self.ranks.group)
        return shared.cpu().numpy()


def _enter(table: npt.NDArray[np.float64], batch: Batch, scores_3M: npt.NDArray[np.float32]) -> None:
    """Each row's mean loss, least lead and whether every token was the argmax, into [3, items, rows]."""
    spans = [(unit, scored) for unit in batch.units for scored in unit.scored]
    ends = np.cumsum([0, *(len(scored.targets) for _, scored in spans)])
    for (unit, scored), (start, end) in zip(spans, pairwise(ends), strict=True):
        losses, leads, hits = scores_3M[:, start:end]
        mean = np.float32(losses.sum(dtype=np.float64) / len(losses))  # scores are float32, as nanochat's
        table[:, unit.item, scored.row] = mean, leads.min(), hits.min()


def answers_from(items: Sequence[Encoded], table: npt.NDArray[np.float64]) -> Answers:
    """Answers from a whole table of [3, items, rows]."""
    predictions, margins, correct = [], [], []
    for item, losses, leads, hits in zip(items, *table, strict=True):
        if is_language_modeling(item):
            prediction, margin, is_right = int(hits[0] == 0.0), float(leads[0]), bool(hits[0])
        else:
            means = [
                float(losses[first]) if start < end else float("nan")
                for first, (start, end) in zip(distinct_rows(item.rows), item.spans, strict=True)
            ]
            prediction, margin = choose(means, item.gold)
            is_right = prediction == item.gold
        predictions.append(prediction)
        margins.append(margin)
        correct.append(is_right)
    return Answers(predictions=predictions, margins=margins, correct=correct)
