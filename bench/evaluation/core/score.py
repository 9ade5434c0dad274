"""From answers to CORE and its noise. Imports no torch.

CORE is the mean over tasks of (accuracy - baseline) / (1 - baseline). Its standard error takes tasks as
independent; hellaswag's two, which share their questions, are together under 1 % of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from bench.errors import DataError
from bench.evaluation.core.answers import Answers
from bench.evaluation.core.result import CoreScore, TaskScore
from bench.evaluation.core.tasks import Task

Baselines = Literal["v1", "v2"]
# DCLM's correction of its own table (mlfoundations/dclm PR #115); nanochat and its leaderboard stay with v1.
V2_CHANGES = {"commonsense_qa": 0.403, "agi_eval_lsat_ar": 0.25, "bigbench_language_identification": 0.25}
# Closer than this, rounding may decide. Largest difference of engine and plain evaluation seen: float32 6e-6.
NEAR_TIE_NATS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}


class KeptTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task's answers and what was seen on the way to them."""

    label: str
    answers: Answers
    cropped_rows: int  # choices whose text was cut on the left to fit the context
    seconds: float


def metric_id(
    baselines: Baselines, squad: str = "nanochat", max_per_task: int | None = None, bundle_sha256: str = ""
) -> str:
    """The metric's name: `core-v1` is nanochat's, and every departure from it is written out.

    Args:
        bundle_sha256: of a bundle that is not the published one.
    """
    parts = ["core", baselines]
    parts += ["squad", squad] if squad != "nanochat" else []
    parts += [f"first{max_per_task}"] if max_per_task is not None else []
    parts += [f"bundle{bundle_sha256[:8]}"] if bundle_sha256 else []
    return "-".join(parts)


def baselines_of(table: Mapping[str, float], tasks: Sequence[Task], version: Baselines) -> dict[str, float]:
    """The baseline of each task.

    Raises:
        DataError: a task has none, or one that cannot be centred by.
    """
    changed = {**table, **V2_CHANGES} if version == "v2" else table
    found = {}
    for task in tasks:
        baseline = changed.get(task.label)
        if baseline is None or not 0.0 <= baseline < 1.0:
            problem = "has no baseline" if baseline is None else f"has a baseline of {baseline:.3g}"
            raise DataError(f"{task.label} {problem} in eval_meta_data.csv", "restore the bundle")
        found[task.label] = baseline
    return found


def centred(accuracy: float, baseline: float) -> float:
    """0 where guessing is, 1 where every answer is right."""
    return (accuracy - baseline) / (1.0 - baseline)


def binomial_standard_error(accuracy: float, num_items: int) -> float:
    """sqrt(p (1 - p) / n): what another draw of as many questions would move the accuracy by."""
    return math.sqrt(accuracy * (1.0 - accuracy) / num_items)


def task_score(task: Task, kept: KeptTask, baseline: float, near_tie_nats: float) -> TaskScore:
    """One task's figures; its share in the variance is set with all tasks in hand."""
    answers, n = kept.answers, len(kept.answers.correct)
    num_correct = sum(answers.correct)
    error = binomial_standard_error(num_correct / n, n)
    margin = math.fsum(answers.margins) / n
    spread = math.fsum((each - margin) ** 2 for each in answers.margins) / max(n - 1, 1)
    return TaskScore(
        label=task.label,
        kind=task.icl_task_type,
        shots=task.shots,
        num_items=n,
        num_correct=num_correct,
        accuracy=num_correct / n,
        standard_error=error,
        baseline=baseline,
        centred=centred(num_correct / n, baseline),
        centred_standard_error=error / (1.0 - baseline),
        margin=margin,
        margin_standard_error=math.sqrt(spread / n),
        variance_share=0.0,
        near_ties=sum(abs(each) < near_tie_nats for each in answers.margins),
        cropped_rows=kept.cropped_rows,
        seconds=kept.seconds,
    )


def core_score(
    scores: Sequence[TaskScore], metric: str, *, limited: bool, bundle_sha256: str, tokenizer_sha256: str
) -> CoreScore:
    """CORE of all tasks."""
    K = len(scores)
    variance = math.fsum(score.centred_standard_error**2 for score in scores)
    shares = [score.centred_standard_error**2 / variance if variance else 0.0 for score in scores]
    return CoreScore(
        metric_id=metric,
        value=math.fsum(score.centred for score in scores) / K,
        standard_error=math.sqrt(variance) / K,
        margin=math.fsum(score.margin for score in scores) / K,
        margin_standard_error=math.sqrt(math.fsum(score.margin_standard_error**2 for score in scores)) / K,
        limited=limited,
        num_items=sum(score.num_items for score in scores),
        bundle_sha256=bundle_sha256,
        tokenizer_sha256=tokenizer_sha256,
        tasks=tuple(
            msgspec.structs.replace(score, variance_share=share)
            for score, share in zip(scores, shares, strict=True)
        ),
    )
