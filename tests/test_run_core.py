"""A run on a track that scores CORE: its phase, its record, its place on the board, and what stops it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.board.build import board_files
from bench.board.summary import summary
from bench.errors import BenchError, DataError, RecipeError
from bench.evaluation.core import bundle as bundles
from bench.evaluation.core import phase
from bench.evaluation.core.bundle import open_bundle
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.evaluate import evaluate_core
from bench.evaluation.core.loading import load_checkpoint
from bench.host.console import Console
from bench.host.device import open_device
from bench.records.schema import Record, encode
from bench.records.store import StoredRecord, read_all, write_once
from bench.spec.workspace import Workspace
from bench.training import loop
from tests import tiny
from tests.evaluation.core.tiny_bundle import NUM_ITEMS, files, manifest_of
from tests.records.sample import changed

CORE = {"metric": "core", "metric_id": "core-v1", "better": "higher"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that has the tiny bundle as if downloaded."""
    folder = tmp_path_factory.mktemp("data")
    manifest = manifest_of(files())
    (folder / "published.json").write_bytes(msgspec.json.encode(manifest))
    home = folder / "core" / f"bundle-{manifest.sha256[:16]}"
    for path, content in files().items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
    (home / ".whole").touch()
    return folder


@pytest.fixture
def published(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the tiny bundle be the published one."""
    monkeypatch.setattr(bundles, "PUBLISHED", data / "published.json")


def checkout(root: Path, data: Path, **score: Any) -> Workspace:
    """The tiny recipe on a track that scores CORE."""
    space = tiny.checkout(root, data)
    tiny.write_toml(space.tracks / "tiny.toml", tiny.TRACK | {"score": CORE | score})
    return space


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, StoredRecord]:
    """A checkout with one finished run."""
    space = checkout(tmp_path_factory.mktemp("first"), data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "PUBLISHED", data / "published.json")
        return space, tiny.run_here(space)


def test_the_record_holds_core_with_its_noise(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    scores, core = stored.record.scores, stored.record.scores.core_score
    assert tiny.problems(space, stored) == []
    assert core is not None
    assert scores.value == scores.core == core.value
    assert core.metric_id == scores.metric_id == "core-v1"
    assert core.standard_error > 0.0
    assert [task.num_items for task in core.tasks] == [NUM_ITEMS] * 4
    assert not core.limited
    assert scores.val_bpb is not None
    assert stored.record.timing.ledger["core"] > 0.0
    (event,) = [event for event in tiny.events_of(stored) if event.key == "core"]
    assert event.value["value"] == core.value
    assert event.value["standard_error"] == core.standard_error


def test_the_checkpoint_alone_gives_the_same_score(
    first: tuple[Workspace, StoredRecord], data: Path, published: None
) -> None:
    space, stored = first
    core, device = stored.record.scores.core_score, open_device("cpu")
    assert core is not None
    loaded = load_checkpoint(space.runs / "tiny" / "tiny" / "0", device)
    assert loaded.step == tiny.STEPS
    (home,) = (data / "core").glob("bundle-*")
    again = evaluate_core(loaded.model, loaded.tokenizer, open_bundle(home), device.torch_device).score
    assert [task.num_correct for task in again.tasks] == [task.num_correct for task in core.tasks]
    assert (again.value, again.metric_id) == (core.value, "core-v1")


def test_board_and_summary_show_it(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    core = stored.record.scores.core_score
    assert core is not None
    board = board_files(space)[space.board].decode()
    (head,) = [line for line in board.split("\n") if line.startswith("|") and "recipe" in line]
    (row,) = [line for line in board.split("\n") if "**tiny**" in line]
    shown = dict(zip((c.strip() for c in head.split("|")), (c.strip() for c in row.split("|")), strict=True))
    assert shown["core"] == f"{core.value:.4f}"
    assert shown["its items' SE"] == f"{core.standard_error:.4f}"
    told = summary(stored.record, Path("x.json"), Path("y.md"))
    assert f"CORE {core.value:.4f} ± {core.standard_error:.4f}" in told


def altered(record: Record, field: str, value: object) -> Record:
    """The record with one field of its CORE, or of the CORE's first task, set."""
    core = record.scores.core_score
    assert core is not None
    if field.startswith("task."):
        task = msgspec.structs.replace(core.tasks[0], **{field.removeprefix("task."): value})
        field, value = "tasks", (task, *core.tasks[1:])
    return changed(record, "scores.core_score", msgspec.structs.replace(core, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("value", 0.9, "not that of its tasks"),
        ("limited", True, "first items"),
        ("metric_id", "core-v2", "measured as core-v2"),
        ("tokenizer_sha256", "0" * 64, "another tokenizer"),
        ("task.centred", 1.0, "not centred from its counts"),
        ("task.num_correct", NUM_ITEMS + 1, f"counts {NUM_ITEMS + 1} of {NUM_ITEMS}"),
        ("tasks", (), "not the mean of its tasks"),
    ],
)
def test_a_record_whose_core_does_not_follow(
    first: tuple[Workspace, StoredRecord], tmp_path: Path, field: str, value: object, problem: str
) -> None:
    space, stored = first
    record = altered(stored.record, field, value)
    (wrong,) = read_all_of(write_once(tmp_path, record, stored.events_path.read_bytes()))
    assert any(problem in found for found in tiny.problems(space, wrong))


def read_all_of(path: Path) -> list[StoredRecord]:
    return read_all(path.parents[2])


def test_a_core_that_the_events_do_not_know(first: tuple[Workspace, StoredRecord], tmp_path: Path) -> None:
    space, stored = first
    core = stored.record.scores.core_score
    assert core is not None
    tasks = tuple(msgspec.structs.replace(t, num_correct=t.num_items, centred=1.0) for t in core.tasks)
    better = msgspec.structs.replace(core, tasks=tasks, value=1.0)
    record = changed(changed(stored.record, "scores.core_score", better), "scores.core", 1.0)
    (wrong,) = read_all_of(
        write_once(tmp_path, changed(record, "scores.value", 1.0), stored.events_path.read_bytes())
    )
    assert tiny.problems(space, wrong) == ["the CORE is not the event log's"]


def test_a_run_killed_in_the_phase_goes_on_by_task(
    data: Path, tmp_path: Path, published: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, calls, answer = checkout(tmp_path, data), 0, Engine.answer

    def killed(self: Engine, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Engine, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny.run_here(space)
    assert read_all(space.records) == []
    stored = tiny.run_here(space, seed_index=0, resume=True)
    assert calls == 3 + 2
    assert tiny.problems(space, stored) == []
    assert stored.record.timing.num_resumes == 1


def test_the_console_tells_of_every_task(
    data: Path, tmp_path: Path, published: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, stream, clock = checkout(tmp_path, data), io.StringIO(), tiny.Clock()
    clock.slow(monkeypatch, loop, "_step", 0.5)
    tiny.run_by(clock, space, Console(stream=stream))
    lines = stream.getvalue().split("\n")
    assert "evaluating CORE" in lines
    for label in ("pick", "letters", "who", "squad"):
        assert any(line.startswith(f"{label} ") for line in lines)


@pytest.mark.parametrize(
    ("score", "broken", "error", "message"),
    [
        ({"metric_id": "core-v9"}, "", RecipeError, "core-v9: no evaluation"),
        ({}, "eval_data/choices/pick.jsonl", DataError, "is not the manifest's"),
    ],
)
def test_what_cannot_be_scored_is_told_before_training(
    tmp_path: Path,
    published: None,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: dict[str, str],
    broken: str,
    error: type[BenchError],
    message: str,
) -> None:
    (home,) = (data / "core").glob("bundle-*")
    space = checkout(tmp_path, data, **score)
    monkeypatch.setattr("bench.training_run.train", None)
    kept = (home / broken).read_bytes() if broken else b""
    if broken:
        (home / broken).write_bytes(kept[:-2] + b" \n")
    try:
        with pytest.raises(error, match=message):
            tiny.run_here(space)
    finally:
        if broken:
            (home / broken).write_bytes(kept)


@pytest.mark.parametrize("metric", ["core-v1", "core-v2", "core-v1-squad-dclm", "core-v2-squad-dclm"])
def test_every_metric_id_names_its_options(metric: str) -> None:
    options = phase.options_of(metric)
    assert phase.metric_id(options.baselines, options.squad, options.max_per_task) == metric


def test_a_record_of_another_metric_says_nothing_of_core(data: Path, tmp_path: Path) -> None:
    space = tiny.checkout(tmp_path, data)
    record = tiny.run_here(space).record
    assert "core_score" not in json.loads(encode(record))["scores"]
    assert record.timing.ledger["core"] == 0.0
