"""Tasks and items: read strictly, or an error that says where."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.errors import DataError, RecipeError
from bench.evaluation.core.bundle import Bundle, open_bundle
from bench.evaluation.core.tasks import (
    LanguageModeling,
    MultipleChoice,
    Schema,
    read_baselines,
    read_items,
    read_tasks,
)
from tests.evaluation.core.tiny_bundle import CSV, NUM_ITEMS, YAML, files, write_bundle


def test_the_tasks_in_their_order(bundle: Bundle) -> None:
    tasks = read_tasks(bundle)
    assert [(task.label, task.shots) for task in tasks] == [
        ("pick", 2),
        ("letters", 3),
        ("who", 0),
        ("squad", 2),
    ]
    assert [task.continuation_delimiter for task in tasks] == ["\nAnswer: ", " ", " ", " "]
    kinds = [type(read_items(bundle, task)[0]) for task in tasks]
    assert kinds == [MultipleChoice, MultipleChoice, Schema, LanguageModeling]


def test_items_are_shuffled_as_nanochat_shuffles_and_then_cut(bundle: Bundle) -> None:
    task = read_tasks(bundle)[0]
    lines = files()["eval_data/choices/pick.jsonl"].decode().splitlines()
    queries = [json.loads(line)["query"] for line in lines]
    in_file_order = [item.query for item in read_items(bundle, task, shuffled=False)]  # type: ignore[union-attr]
    assert in_file_order == queries
    random.Random(1337).shuffle(queries)
    items = read_items(bundle, task, 5)
    assert [item.query for item in items] == queries[:5]  # type: ignore[union-attr]


def test_baselines_are_shares(bundle: Bundle) -> None:
    assert read_baselines(bundle) == {"pick": 0.25, "letters": pytest.approx(0.091), "who": 0.5, "squad": 0.0}


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("icl_tasks:", "tasks:", "core.yaml:1"),
        ("  label: pick", "  label: &anchor pick", "core.yaml:3"),
        ("  label: pick", "   label: pick", "core.yaml:3"),
        ("  label: pick", "  label: [", "core.yaml:3"),
        ("  label: pick\n", "  label: pick\n  label: pick\n", "core.yaml:4"),
        ("  label: pick\n", "", "core.yaml:2.*label"),
        ("  label: pick", "  label: pick\n  surprise: 1", "core.yaml:2.*surprise"),
        ("num_fewshot: [2]", "num_fewshot: [2, 3]", "core.yaml:2"),
        ("num_fewshot: [2]", "num_fewshot: [-1]", "core.yaml:2"),
        ("type: schema", "type: essay", "core.yaml:13.*essay"),
        ("choices/pick.jsonl", "choices/gone.jsonl", "pick: the bundle has no"),
        ("choices/pick.jsonl", "../pick.jsonl", "core.yaml:2"),
        ("label: letters", "label: pick", "pick twice"),
        (YAML, "icl_tasks:\n", "no tasks"),
    ],
)
def test_a_bad_list_of_tasks(tmp_path: Path, old: str, new: str, where: str) -> None:
    assert old in YAML
    bundle = open_bundle(write_bundle(tmp_path, core=YAML.replace(old, new, 1).encode()))
    with pytest.raises(DataError, match=where):
        read_tasks(bundle)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"query": "q", "choices": ["a"], "gold": 0}',
        b'{"query": "q", "choices": ["a", ""], "gold": 0}',
        b'{"query": "q", "choices": ["a", "b"], "gold": 2}',
        b'{"query": "q", "choices": ["a", "b"], "gold": -1}',
        b'{"query": "q", "choices": ["a", "b"], "gold": "0"}',
        b'{"query": "q", "choices": ["a", 3], "gold": 0}',
        b'{"query": "q", "choices": ["a", "\xff"], "gold": 0}',
        b'{"query": "q", "choices": ["a", "b"], "gold": 0',
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: bytes) -> None:
    lines = files()["eval_data/choices/pick.jsonl"].splitlines()
    lines[6] = line
    bundle = open_bundle(write_bundle(tmp_path, pick=b"\n".join(lines) + b"\n"))
    with pytest.raises(DataError, match=r"pick\.jsonl:7"):
        read_items(bundle, read_tasks(bundle)[0])


def test_a_pool_smaller_than_the_shots_is_an_error_never_a_zero(bundle: Bundle, tmp_path: Path) -> None:
    letters = read_tasks(bundle)[1]
    assert len(read_items(bundle, letters, 4)) == 4
    with pytest.raises(RecipeError, match="3 items cannot give 3 examples") as failure:
        read_items(bundle, letters, 3)
    assert "4 or more" in failure.value.hint
    short = b"\n".join(files()["eval_data/choices/letters.jsonl"].splitlines()[:2])
    cut = open_bundle(write_bundle(tmp_path, letters=short))
    with pytest.raises(DataError, match="2 items cannot give 3 examples"):
        read_items(cut, letters)
    assert len(read_items(bundle, letters)) == NUM_ITEMS


def test_a_baseline_that_is_no_number(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path, eval_meta_data=CSV.replace("9.1", "n/a").encode()))
    with pytest.raises(DataError, match="letters is no number"):
        read_baselines(bundle)
