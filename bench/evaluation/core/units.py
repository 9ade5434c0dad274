"""How an item's rows are cut into what is computed once and what is computed for each choice.

A unit is a stem, the tokens that its rows share, and the branches that follow. All that is scored lies in a
branch, so that a stem never meets the last layer's MLP or the head; the last token of a row is never fed.
Choices of one token ("A", "B", ...) have one branch between them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bench.evaluation.core.prompts import Encoded, Tokens, common_prefix

# A branch this much longer than its stem gains nothing from sharing it.
_SHARING_RATIO, _SHARING_TOKENS = 4, 64


class Scored(NamedTuple):
    """A row's span within a unit: branch position `first` predicts targets[0], and so on."""

    row: int
    branch: int
    first: int
    targets: Tokens


class Unit(NamedTuple):
    """Rows of one item that share a stem."""

    item: int
    stem: Tokens
    branches: tuple[Tokens, ...]
    scored: tuple[Scored, ...]


class Batch(NamedTuple):
    """Units computed together, padded to these lengths."""

    units: tuple[Unit, ...]
    stem_tokens: int
    num_branches: int
    branch_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens fed, padding included."""
        return len(self.units) * (self.stem_tokens + self.num_branches * self.branch_tokens)


def distinct_rows(rows: Sequence[Tokens]) -> list[int]:
    """For each row the first row equal to it: equal choices get one score, so that ties are exact."""
    first: dict[bytes, int] = {}
    return [first.setdefault(row.tobytes(), index) for index, row in enumerate(rows)]


def units_of(index: int, encoded: Encoded) -> Iterator[Unit]:
    """The units of an item; rows with an empty span, which have no score, are left out."""
    chosen = [
        row
        for row, first in enumerate(distinct_rows(encoded.rows))
        if first == row and encoded.spans[row][0] < encoded.spans[row][1]
    ]
    if not chosen:
        return
    rows, spans = [encoded.rows[row] for row in chosen], [encoded.spans[row] for row in chosen]
    shared = min(common_prefix(rows), min(start for start, _ in spans) - 1)
    longest = max(end - 1 for _, end in spans) - shared
    if len(rows) == 1 or longest <= _SHARING_RATIO * shared + _SHARING_TOKENS:
        yield _unit(index, shared, chosen, encoded)
    else:
        for row in chosen:
            yield _unit(index, encoded.spans[row][0] - 1, [row], encoded)


def _unit(index: int, shared: int, chosen: Sequence[int], encoded: Encoded) -> Unit:
    branches: dict[bytes, int] = {}
    kept: list[Tokens] = []
    scored = []
    for row in chosen:
        tokens, (start, end) = encoded.rows[row], encoded.spans[row]
        branch = tokens[shared : end - 1]
        place = branches.setdefault(branch.tobytes(), len(kept))
        if place == len(kept):
            kept.append(branch)
        scored.append(Scored(row, place, start - 1 - shared, tokens[start:end]))
    return Unit(index, encoded.rows[chosen[0]][:shared], tuple(kept), tuple(scored))


def batches_of(units: Sequence[Unit], token_budget: int) -> list[Batch]:
    """Units of like lengths together, each batch within the budget or of one unit; longest first.

    Longest first, so that a lack of memory shows at once. The batches do not depend on the number of ranks.
    """

    def shape(unit: Unit) -> tuple[int, int, int]:
        longest = max(len(branch) for branch in unit.branches)
        return rounded(len(unit.stem)), rounded(longest), len(unit.branches)

    batches: list[Batch] = []
    waiting: list[Unit] = []
    stem = branch = number = 0
    for unit in sorted(units, key=lambda unit: (*shape(unit), -unit.item), reverse=True):
        wider = tuple(map(max, (stem, branch, number), shape(unit)))
        if waiting and (len(waiting) + 1) * (wider[0] + wider[1] * wider[2]) > token_budget:
            batches.append(Batch(tuple(waiting), stem, number, branch))
            waiting, wider = [], shape(unit)
        waiting.append(unit)
        stem, branch, number = wider
    if waiting:
        batches.append(Batch(tuple(waiting), stem, number, branch))
    return batches


def rounded(num_tokens: int) -> int:
    """A length rounded up by at most a sixteenth (or to 8): few shapes, little padding."""
    step = max(8, 1 << max(num_tokens.bit_length() - 5, 0)) if num_tokens > 8 else 1
    return max(-(-num_tokens // step) * step, 1)


def padded(
    rows: Sequence[Tokens], num_rows: int, num_tokens: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Rows as int64 [num_rows, num_tokens], zeros behind each and below them."""
    table = np.zeros((num_rows, num_tokens), dtype=np.int64)
    for row, tokens in zip(table, rows, strict=False):
        row[: len(tokens)] = tokens
    return table
