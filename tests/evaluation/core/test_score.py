"""Centring and standard errors against published tables, and what a table for people must say."""

from __future__ import annotations

import math

import pytest

from bench.errors import DataError
from bench.evaluation.core.answers import Answers
from bench.evaluation.core.report import core_table, lm_eval_table
from bench.evaluation.core.result import CoreScore
from bench.evaluation.core.score import (
    KeptTask,
    baselines_of,
    binomial_standard_error,
    centred,
    core_score,
    metric_id,
    task_score,
)
from bench.evaluation.core.tasks import Task

# GPT-2 XL by nanochat's evaluator (eval_bundle, openai-community-gpt2-xl.csv), at most 1,000 items a task:
# label, accuracy, baseline of eval_meta_data.csv, items of a full pass.
GPT2_XL = (
    ("hellaswag_zeroshot", 0.502, 0.25, 10042), ("jeopardy", 0.092, 0.0, 2117),
    ("bigbench_qa_wikidata", 0.531, 0.0, 20321), ("arc_easy", 0.595, 0.25, 2376),
    ("arc_challenge", 0.299, 0.25, 1172), ("copa", 0.67, 0.5, 100), ("commonsense_qa", 0.227, 0.2, 1221),
    ("piqa", 0.725, 0.5, 1838), ("openbook_qa", 0.346, 0.25, 500), ("lambada_openai", 0.523, 0.0, 5153),
    ("hellaswag", 0.512, 0.25, 10042), ("winograd", 0.714286, 0.5, 273), ("winogrande", 0.569, 0.5, 1267),
    ("bigbench_dyck_languages", 0.247, 0.0, 1000), ("agi_eval_lsat_ar", 0.273913, 0.2, 230),
    ("bigbench_cs_algorithms", 0.417, 0.0, 1320), ("bigbench_operators", 0.157143, 0.0, 210),
    ("bigbench_repeat_copy_logic", 0.09375, 0.0, 32), ("squad", 0.309, 0.0, 10570), ("coqa", 0.28, 0.0, 7983),
    ("boolq", 0.619, 0.62, 3270), ("bigbench_language_identification", 0.25, 0.091, 10000),
)  # fmt: skip
PUBLISHED_CORE, THEORY_SD = 0.256525, 0.0065  # the standard error that these accuracies give a full pass


def task(label: str) -> Task:
    """A task of this name."""
    return Task(label=label, dataset_uri="x.jsonl", num_fewshot=(10,), icl_task_type="multiple_choice")


def kept(label: str, accuracy: float, num_items: int) -> KeptTask:
    """Answers of about this accuracy."""
    right = round(accuracy * num_items)
    correct = [index < right for index in range(num_items)]
    answers = Answers(
        predictions=[0] * num_items, margins=[0.5 if each else -0.25 for each in correct], correct=correct
    )
    return KeptTask(label=label, answers=answers, cropped_rows=0, seconds=1.0)


def gpt2_xl(limited: bool = False) -> CoreScore:
    """GPT-2 XL's score as a full pass would have it."""
    scores = [task_score(task(label), kept(label, acc, n), base, 1e-4) for label, acc, base, n in GPT2_XL]
    return core_score(scores, "core-v1", limited=limited, bundle_sha256="b", tokenizer_sha256="t")


def test_published_accuracies_give_the_published_core() -> None:
    value = sum(centred(accuracy, baseline) for _, accuracy, baseline, _ in GPT2_XL) / len(GPT2_XL)
    assert value == pytest.approx(PUBLISHED_CORE, abs=5e-7)


def test_the_noise_of_a_full_pass() -> None:
    score = gpt2_xl()
    assert score.value == pytest.approx(PUBLISHED_CORE, abs=2e-3)  # accuracies rounded to whole items
    assert score.standard_error == pytest.approx(THEORY_SD, abs=1e-4)
    shares = {each.label: each.variance_share for each in score.tasks}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["copa"] == pytest.approx(0.435, abs=0.005)
    assert shares["hellaswag"] + shares["hellaswag_zeroshot"] < 0.01


def test_one_task() -> None:
    score = task_score(task("copa"), kept("copa", 0.67, 100), 0.5, 0.3)
    assert (score.num_items, score.num_correct, score.accuracy) == (100, 67, 0.67)
    assert score.standard_error == pytest.approx(math.sqrt(0.67 * 0.33 / 100))
    assert score.centred == pytest.approx(0.34)
    assert score.centred_standard_error == pytest.approx(2 * score.standard_error)
    assert score.margin == pytest.approx(0.67 * 0.5 - 0.33 * 0.25)
    assert score.margin_standard_error == pytest.approx(0.75 * math.sqrt(0.67 * 0.33 / 99))
    assert score.near_ties == 33


def test_certain_accuracies_have_no_error_and_shares_stay_finite() -> None:
    assert binomial_standard_error(1.0, 10) == binomial_standard_error(0.0, 10) == 0.0
    scores = [task_score(task(label), kept(label, 1.0, 10), 0.5, 0.0) for label in ("a", "b")]
    score = core_score(scores, "x", limited=False, bundle_sha256="", tokenizer_sha256="")
    assert (score.value, score.standard_error) == (1.0, 0.0)
    assert [each.variance_share for each in score.tasks] == [0.0, 0.0]


def test_metric_ids_name_every_departure() -> None:
    assert metric_id("v1") == "core-v1"
    assert metric_id("v2", "dclm") == "core-v2-squad-dclm"
    assert metric_id("v1", "nanochat", 500) == "core-v1-first500"
    assert metric_id("v1", bundle_sha256="0123456789") == "core-v1-bundle01234567"
    assert len(metric_id("v2", "dclm", 10042, "0" * 64)) > 40  # longer than a track's metric id may be
    assert "-" in metric_id("v1")


def test_baselines() -> None:
    tasks = [task("commonsense_qa"), task("boolq")]
    table = {"commonsense_qa": 0.2, "boolq": 0.62, "other": 0.5}
    assert baselines_of(table, tasks, "v1") == {"commonsense_qa": 0.2, "boolq": 0.62}
    assert baselines_of(table, tasks, "v2") == {"commonsense_qa": 0.403, "boolq": 0.62}
    for wrong in ({"boolq": 0.62}, {**table, "boolq": 1.0}, {**table, "boolq": float("nan")}):
        with pytest.raises(DataError, match=r"commonsense_qa|boolq"):
            baselines_of(wrong, tasks, "v1")


def test_the_table_shows_the_noise_and_the_limit() -> None:
    text = core_table(gpt2_xl())
    assert "0.0065" in text
    assert "limited" not in text
    assert len([line for line in text.splitlines() if "%" in line]) >= 22
    assert "no record's score" in core_table(gpt2_xl(limited=True))


def test_the_harness_table() -> None:
    lines = lm_eval_table(gpt2_xl()).splitlines()
    assert len(lines) == 2 + 22 + 1
    cells = [cell.strip() for cell in lines[2 + 5].strip("|").split("|")]
    assert cells == ["copa", "1", "none", "10", "acc", "↑", "0.6700", "±", "0.0470"]
    assert [cell.strip() for cell in lines[0].strip("|").split("|")][:5] == [
        "Tasks", "Version", "Filter", "n-shot", "Metric",
    ]  # fmt: skip
