"""Where each second of a run goes, and how a time horizon ends."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.run as conductor
from bench import training_run
from bench.data.loader import Loader
from bench.host.clock import CATEGORIES
from bench.host.device import Device
from bench.spec.workspace import Workspace
from bench.training import checkpoint, loop
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def space(data: Path, tmp_path: Path) -> Workspace:
    """A checkout of the tiny recipe."""
    return tiny.checkout(tmp_path, data)


def test_every_second_is_in_its_category(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tiny.Clock()
    tiny.write_recipe(space, eval={"every_steps": 4})
    for owner, name, seconds in (
        (conductor, "text_of", 2.0**-1),
        (conductor, "proofs_for", 2.0**-10),
        (conductor, "build_trainer", 2.0**-2),
        (conductor, "warm_up", 2.0**-3),
        (loop, "_step", 2.0**-4),
        (Loader, "__next__", 2.0**-5),
        (training_run, "documents_bpb", 2.0**-6),
        (checkpoint, "save", 2.0**-7),
        (Device, "sample_memory", 2.0**-8),
        (conductor, "probe", 2.0**-9),
    ):
        clock.slow(monkeypatch, owner, name, seconds)
    record = tiny.run_by(clock, space).record
    expected = dict.fromkeys(CATEGORIES, 0.0) | {
        "data": 2.0**-1,
        "proof": 2.0**-10,
        "warmup": 2.0**-2 + 2.0**-3,
        "train": 8 * 2.0**-4,
        "data_wait": 16 * 2.0**-5,  # 8 steps of 2 micro-batches
        "eval": 2 * 2.0**-6 + 2.0**-9,
        "checkpoint": 6 * 2.0**-7,  # two are states kept for replays
        "other": 8 * 2.0**-8,
    }
    assert record.timing.ledger == expected
    assert record.timing.wall_s == sum(expected.values())
    assert record.timing.official_s == 1.0
    assert record.curves.logged_seconds == [0.125 * step for step in range(1, 9)]
    assert (record.timing.step_median_s, record.timing.step_p90_s) == (0.125, 0.125)


def test_work_still_queued_on_the_device_is_training(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that runs behind: a micro-batch takes its second when someone waits for it."""
    clock, queued_s, most_s = tiny.Clock(), 0.0, 0.0
    real = loop.batch_loss

    def queueing(*arguments: Any) -> torch.Tensor:
        nonlocal queued_s, most_s
        queued_s += 1.0
        most_s = max(most_s, queued_s)
        return real(*arguments)

    def synchronize(device: Device) -> None:
        nonlocal queued_s
        clock.now_s, queued_s = clock.now_s + queued_s, 0.0

    monkeypatch.setattr(loop, "batch_loss", queueing)
    monkeypatch.setattr(Device, "synchronize", synchronize)
    ledger = tiny.run_by(clock, space).record.timing.ledger
    assert {name: seconds for name, seconds in ledger.items() if seconds} == {"train": 16.0, "warmup": 1.0}
    assert most_s == 2.0  # taking the second micro-batch of a step did not wait for the first


def test_a_slow_loader_is_remarked(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tiny.Clock()
    clock.slow(monkeypatch, loop, "_step", 1.0)
    clock.slow(monkeypatch, Loader, "__next__", 0.05)
    record = tiny.run_by(clock, space).record
    assert record.timing.data_wait_share == pytest.approx(0.1 / 1.1)
    assert any("data wait is 9.1%" in warning for warning in record.warnings)


@pytest.mark.parametrize("step_s", [0.11, 0.4])
def test_a_time_horizon_ends_within_a_step_of_its_budget(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    clock = tiny.Clock()
    tiny.write_recipe(
        space, horizon={"seconds": 2.0}, schedule={"warmdown_ratio": 0.5, "final_lr_fraction": 0.1}
    )
    clock.slow(monkeypatch, loop, "_step", step_s)
    stored = tiny.run_by(clock, space)
    record = stored.record
    assert tiny.problems(space, stored) == []
    assert abs(record.timing.official_s - 2.0) <= step_s / 2
    assert record.shape.steps == round(2.0 / step_s)
    last = [event for event in tiny.events_of(stored) if event.key == "step"][-1]
    warmdown_steps = round(0.5 * record.shape.steps)
    assert last.value["learning_rates"][-1] == pytest.approx(0.1 + 0.9 / warmdown_steps, abs=0.1)


def test_a_time_horizon_is_resumed(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tiny.Clock()
    tiny.write_recipe(space, horizon={"seconds": 2.0})
    clock.slow(monkeypatch, loop, "_step", 0.2)
    real, calls = loop._step, count(1)

    def stopping(*arguments: Any) -> torch.Tensor:
        if next(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_by(clock, space)
    stored = tiny.run_by(clock, space, resume=True)
    assert tiny.problems(space, stored) == []
    assert stored.record.shape.steps == 10
    assert stored.record.timing.official_s == pytest.approx(2.0)
    assert stored.record.curves.logged_seconds == pytest.approx([0.2 * step for step in range(1, 11)])
