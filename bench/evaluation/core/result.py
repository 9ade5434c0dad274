"""CORE as measured: each task's figures and what they come to. Imports neither torch nor numpy."""

from __future__ import annotations

import math

import msgspec


class TaskScore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task. Standard errors are binomial for accuracies, of the mean for margins (nats)."""

    label: str
    kind: str
    shots: int
    num_items: int
    num_correct: int
    accuracy: float
    standard_error: float
    baseline: float
    centred: float
    centred_standard_error: float
    margin: float
    margin_standard_error: float
    variance_share: float  # of CORE's variance
    near_ties: int  # items that rounding may decide
    cropped_rows: int
    seconds: float


class CoreScore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CORE. `margin` is the soft score: the mean over tasks of the mean lead of the right answer, in nats."""

    metric_id: str
    value: float
    standard_error: float
    margin: float
    margin_standard_error: float
    limited: bool  # of the first items of each task only: never comparable, never a record's score
    num_items: int
    bundle_sha256: str
    tokenizer_sha256: str
    tasks: tuple[TaskScore, ...]

    def problems(self) -> list[str]:
        """What does not follow from the counts of right answers, or may not stand in a record."""
        found = ["CORE is of the first items of each task only"] if self.limited else []
        for task in self.tasks:
            if not 0 <= task.num_correct <= task.num_items or not 0.0 <= task.baseline < 1.0:
                return [*found, f"CORE's task {task.label} counts {task.num_correct} of {task.num_items}"]
            accuracy = task.num_correct / max(task.num_items, 1)
            if not _equal(task.centred, (accuracy - task.baseline) / (1.0 - task.baseline)):
                found.append(f"CORE's task {task.label} is not centred from its counts")
        if not self.tasks or not _equal(self.value, _mean([task.centred for task in self.tasks])):
            found.append("CORE is not the mean of its tasks")
        return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
