"""CORE as a person reads it, and as the table of EleutherAI's harness. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import tabulate

from bench.evaluation.core.result import CoreScore, TaskScore
from bench.host.console import Console, duration

if TYPE_CHECKING:
    from bench.evaluation.core.evaluate import Progress

_HEAD = ("task", "shots", "items", "accuracy", "± SE", "centred", "± SE", "margin", "of variance")


def core_table(score: CoreScore) -> str:
    """All tasks with their standard errors, CORE below them, and what else to know before quoting it."""
    rows = [_row(task) for task in score.tasks]
    rows.append(
        (
            score.metric_id, "", f"{score.num_items:,}", "", "", f"{score.value:.4f}",
            f"{score.standard_error:.4f}", f"{score.margin:+.3f}", "",
        )
    )  # fmt: skip
    align = ("left", *["right"] * (len(_HEAD) - 1))
    table = tabulate(rows, _HEAD, tablefmt="simple", colalign=align, disable_numparse=True)
    return "\n".join([table, "", *_remarks(score)])


def _row(task: TaskScore) -> tuple[str, ...]:
    return (
        task.label, str(task.shots), f"{task.num_items:,}",
        f"{task.accuracy:.4f}", f"{task.standard_error:.4f}",
        f"{task.centred:.4f}", f"{task.centred_standard_error:.4f}",
        f"{task.margin:+.3f}", f"{task.variance_share:.1%}",
    )  # fmt: skip


def _remarks(score: CoreScore) -> list[str]:
    """What a figure does not say by itself, one line each."""
    low, high = score.value - 1.96 * score.standard_error, score.value + 1.96 * score.standard_error
    lines = [
        f"CORE {score.value:.4f} ± {score.standard_error:.4f} (95 %: {low:.4f} to {high:.4f}); "
        "margin: lead of the right answer in nats"
    ]
    if score.limited:
        lines.append(
            "limited: the first items of each task only; not comparable with a full pass, no record's score"
        )
    ties = sum(task.near_ties for task in score.tasks)
    if ties:
        lines.append(f"{ties} answers lie within rounding: another batch size or device may turn them")
    cropped = sum(task.cropped_rows for task in score.tasks)
    if cropped:
        lines.append(f"{cropped} prompts were cut on the left to fit the model's positions")
    return lines


def lm_eval_table(score: CoreScore) -> str:
    """The tasks in the layout of lm-evaluation-harness (`lm_eval.utils.make_table`)."""
    head = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr")
    rows = [_lm_eval_row(task.label, str(task.shots), "acc", task) for task in score.tasks]
    rows.append(_lm_eval_row(score.metric_id, "", "core", score))
    align = ("left", "right", "left", "right", "left", "left", "right", "left", "right")
    return tabulate(rows, head, tablefmt="pipe", colalign=align, disable_numparse=True)


def _lm_eval_row(label: str, shots: str, metric: str, score: TaskScore | CoreScore) -> tuple[str, ...]:
    value = score.accuracy if isinstance(score, TaskScore) else score.value
    return (label, "1", "none", shots, metric, "↑", f"{value:.4f}", "±", f"{score.standard_error:.4f}")


def tell(console: Console, progress: Progress) -> None:
    """A line of each finished task, and a live one of the task under way."""
    if progress.score is not None:
        answers = progress.score.answers
        accuracy = sum(answers.correct) / len(answers.correct)
        console.line(f"{progress.label:<34} {accuracy:.4f}  {duration(progress.score.seconds)}")
    else:
        console.progress(
            f"task {progress.number}/{progress.num_tasks} {progress.label}  {progress.share:.0%}  "
            f"{duration(progress.left_s)} left"
        )
