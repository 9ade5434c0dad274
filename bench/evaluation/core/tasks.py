"""Tasks and their items: core.yaml, the table of baselines and the jsonl files as checked, frozen values.

core.yaml is a list of flat tables of one-line values. That much is read here, by a reader that refuses the
rest of YAML by line number: a dependency would bring all of it, anchors and implicit types included.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bench.errors import DataError, RecipeError
from bench.evaluation.core.bundle import Bundle, BundlePath

Kind = Literal["multiple_choice", "schema", "language_modeling"]
# Of the random generator that orders a task's items before the first N are taken (nanochat's evaluate_core).
SHUFFLE_SEED = 1337
_ITEM = re.compile(r"  (?P<key>[a-z_]{1,40}): (?P<value>\S.*)\Z")
_WORD = re.compile(r"[A-Za-z0-9_./-]{1,200}\Z")

Text = Annotated[str, Meta(min_length=1, pattern=r"\S")]
Gold = Annotated[int, Meta(ge=0)]


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of core.yaml."""

    label: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}\Z")]
    dataset_uri: BundlePath
    num_fewshot: tuple[Annotated[int, Meta(ge=0, le=100)]]
    icl_task_type: Kind
    continuation_delimiter: str = " "
    has_categories: bool = False  # DCLM averages such a task by category; nanochat, and so this, by item

    @property
    def shots(self) -> int:
        """Examples before the question."""
        return self.num_fewshot[0]


class MultipleChoice(msgspec.Struct, frozen=True):
    """One question, several continuations."""

    query: str
    choices: Annotated[tuple[Text, ...], Meta(min_length=2)]
    gold: Gold


class Schema(msgspec.Struct, frozen=True):
    """Several contexts, one continuation."""

    context_options: Annotated[tuple[Text, ...], Meta(min_length=2)]
    continuation: Text
    gold: Gold


class LanguageModeling(msgspec.Struct, frozen=True):
    """One context, one continuation to be predicted token by token."""

    context: Text
    continuation: Text


Item = MultipleChoice | Schema | LanguageModeling
_KINDS: dict[Kind, type[Item]] = {
    "multiple_choice": MultipleChoice,
    "schema": Schema,
    "language_modeling": LanguageModeling,
}


def read_tasks(bundle: Bundle) -> tuple[Task, ...]:
    """The tasks of core.yaml, in its order.

    Raises:
        DataError: malformed, a label twice, or a task without its file or its baseline.
    """
    tables = [_convert(table, line) for line, table in parse_tables(_text(bundle, "core.yaml"))]
    labels = [task.label for task in tables]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if not tables or doubled:
        raise DataError(f"core.yaml: {'no tasks' if not tables else f'{doubled[0]} twice'}", _restore(bundle))
    paths = {file.path for file in bundle.manifest.files}
    for task in tables:
        if f"eval_data/{task.dataset_uri}" not in paths:
            raise DataError(f"{task.label}: the bundle has no eval_data/{task.dataset_uri}", _restore(bundle))
    return tuple(tables)


def read_baselines(bundle: Bundle) -> dict[str, float]:
    """Accuracy of guessing, 0 to 1, of every task of eval_meta_data.csv."""
    rows = csv.DictReader(_text(bundle, "eval_meta_data.csv").splitlines(keepends=True))
    baselines = {}
    for row in rows:
        label, value = row.get("Eval Task"), row.get("Random baseline")
        try:
            baselines[str(label)] = 0.01 * float(str(value))
        except ValueError as error:
            raise DataError(
                f"eval_meta_data.csv: baseline {value!r} of {label} is no number", _restore(bundle)
            ) from error
    return baselines


def read_items(
    bundle: Bundle, task: Task, max_items: int | None = None, shuffled: bool = True
) -> tuple[Item, ...]:
    """A task's items in nanochat's order: shuffled, then the first `max_items`, which also are the examples.

    Args:
        shuffled: False keeps the file's order, as DCLM does.

    Raises:
        DataError: a bad line.
        RecipeError: `max_items` leaves fewer other items than the task has examples.
    """
    path = f"eval_data/{task.dataset_uri}"
    kind = _KINDS[task.icl_task_type]
    lines = bundle.read(path).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    items = [_item(line, kind, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if shuffled:
        random.Random(SHUFFLE_SEED).shuffle(items)
    items = items[:max_items]
    if len(items) <= task.shots:
        message = f"{task.label}: {len(items)} items cannot give {task.shots} examples beside the question"
        if max_items is not None:
            raise RecipeError(message, f"--max-per-task of {task.shots + 1} or more")
        raise DataError(message, "the file is cut short: restore the bundle")
    return tuple(items)


def _item(line: bytes, kind: type[Item], where: str) -> Item:
    try:
        item = msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}", "every line is one item: restore the bundle") from error
    if not isinstance(item, LanguageModeling):
        options = item.choices if isinstance(item, MultipleChoice) else item.context_options
        if item.gold >= len(options):
            raise DataError(f"{where}: gold is {item.gold} of {len(options)} options", "restore the bundle")
    return item


def parse_tables(text: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number, table) of each entry of `icl_tasks`.

    Raises:
        DataError: a line is not of this layout.
    """
    lines = text.splitlines()
    if not lines or lines[0] != "icl_tasks:":
        raise DataError("core.yaml:1: expected `icl_tasks:`", "restore the bundle")
    table: dict[str, object] | None = None
    start = 1
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line == "-":
            if table is not None:
                yield start, table
            table, start = {}, number
            continue
        match = _ITEM.match(line)
        if match is None or table is None or match["key"] in table:
            raise DataError(
                f"core.yaml:{number}: expected `-` or a new `  key: value`, found {line!r}",
                "restore the bundle",
            )
        table[match["key"]] = _value(match["value"], number)
    if table is not None:
        yield start, table


def _value(text: str, number: int) -> object:
    """A word, true, false, `[whole number]` or a double-quoted string."""
    if text in ("true", "false"):
        return text == "true"
    if _WORD.match(text):
        return text
    try:
        value: object = msgspec.json.decode(text)  # the quoted strings and lists in use are JSON's as well
    except msgspec.DecodeError as error:
        raise DataError(
            f"core.yaml:{number}: cannot read the value {text!r}", "restore the bundle"
        ) from error
    return value


def _convert(table: dict[str, object], line: int) -> Task:
    try:
        return msgspec.convert(table, Task)
    except msgspec.ValidationError as error:
        raise DataError(f"core.yaml:{line}: {error}", "restore the bundle") from error


def _text(bundle: Bundle, path: str) -> str:
    try:
        return bundle.read(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", _restore(bundle)) from error


def _restore(bundle: Bundle) -> str:
    return f"restore {bundle.folder}, or download the bundle by leaving --bundle out"
