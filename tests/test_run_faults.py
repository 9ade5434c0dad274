"""What faults leave behind: divergence, exhausted memory, folders and seeds that cannot be used."""

from __future__ import annotations

import math
import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.run as conductor
from bench import training_run
from bench.board.build import board_files
from bench.errors import (
    DataError,
    Diverged,
    OutOfMemory,
    PlanRefused,
    RecipeError,
    VerificationFailed,
)
from bench.evaluation import bits_per_byte
from bench.records.schema import encode
from bench.records.store import read_all
from bench.spec.workspace import Workspace
from bench.training import checkpoint, loop
from bench.training.run_folder import folder_path, held
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def space(data: Path, tmp_path: Path) -> Workspace:
    """A checkout of the tiny recipe."""
    return tiny.checkout(tmp_path, data)


def spoil(patch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Let the loss of a step be this value."""
    real, calls = loop._step, count(1)

    def spoiling(*arguments: Any) -> torch.Tensor:
        loss = real(*arguments)
        return torch.full_like(loss, value) if next(calls) == step else loss

    patch.setattr(loop, "_step", spoiling)


@pytest.mark.parametrize(
    ("step", "value", "log"), [(1, math.inf, 1), (5, math.nan, 1), (5, math.nan, 3), (8, math.nan, 5)]
)
def test_divergence_leaves_a_marked_record(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, step: int, value: float, log: int
) -> None:
    tiny.write_recipe(space, log={"every_steps": log}, checkpoint={"every_steps": 0})
    spoil(monkeypatch, step, value)
    with pytest.raises(Diverged, match=f"step {step}; marked record"):
        tiny.run_here(space)
    (stored,) = read_all(space.records)
    record = stored.record
    assert tiny.problems(space, stored) == []
    assert stored.path.read_bytes() == encode(record)
    assert record.status == "diverged"
    assert record.shape.steps == step
    assert len(record.curves.losses) == step - 1
    assert None not in record.curves.losses
    assert (record.scores.value, record.scores.val_bpb, record.scores.weights_sha256) == (None, None, "")
    assert any(f"diverged at step {step}" in warning for warning in record.warnings)
    assert [event.key for event in tiny.events_of(stored)][-2:] == ["diverged", "run_stop"]
    assert "tiny (1 run(s))" in board_files(space)[space.board].decode()
    assert checkpoint.checkpoints(space.runs / "tiny" / "tiny" / "0") == []
    monkeypatch.undo()
    assert tiny.run_here(space).record.identity.seed_index == 1


def test_a_gradient_that_overflows_is_a_divergence(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step is finite, the weights after it are not."""
    real, calls = loop._step, count(1)

    def overflowing(trainer: loop.Trainer, *arguments: Any) -> torch.Tensor:
        loss = real(trainer, *arguments)
        if next(calls) == tiny.STEPS:
            with torch.no_grad():
                trainer.model.lm_head[3, 3] = math.inf
        return loss

    monkeypatch.setattr(loop, "_step", overflowing)
    with pytest.raises(Diverged, match=f"step {tiny.STEPS}"):
        tiny.run_here(space)
    (stored,) = read_all(space.records)
    assert tiny.problems(space, stored) == []
    assert len(stored.record.curves.losses) == tiny.STEPS


def test_a_score_that_is_not_finite_is_a_divergence(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bits_per_byte.token_losses
    monkeypatch.setattr(bits_per_byte, "token_losses", lambda *arguments: real(*arguments) / 0.0)
    tiny.write_recipe(space, eval={"every_steps": 3})
    with pytest.raises(Diverged, match="step 3"):
        tiny.run_here(space)
    (stored,) = read_all(space.records)
    assert tiny.problems(space, stored) == []
    assert stored.record.curves.bpbs == []


def test_an_absurd_learning_rate_is_a_divergence(space: Workspace) -> None:
    """Weight decay times such a rate multiplies the head by 1e5 and more a step, to infinity."""
    tiny.write_recipe(space, optimizer={"adamw": {"lm_head": {"lr": 1e6, "weight_decay": 1.0}}})
    with pytest.raises(Diverged) as caught:
        tiny.run_here(space)
    assert caught.value.exit_code == 7
    (stored,) = read_all(space.records)
    assert tiny.problems(space, stored) == []
    assert stored.record.scores.value is None


def test_a_model_that_died_has_no_score(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite weights, but every prediction the same."""
    real = training_run.documents_bpb

    def of_the_dead(model: Any, *arguments: Any, **options: Any) -> Any:
        with torch.no_grad():
            model.lm_head.zero_()
        return real(model, *arguments, **options)

    monkeypatch.setattr(training_run, "documents_bpb", of_the_dead)
    with pytest.raises(VerificationFailed, match="do not depend on the tokens") as caught:
        tiny.run_here(space)
    assert "learning rates" in caught.value.hint
    assert read_all(space.records) == []


def test_out_of_memory_says_what_to_do(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    monkeypatch.setattr(loop, "batch_loss", hungry)
    with pytest.raises(OutOfMemory) as caught:
        tiny.run_here(space)
    assert caught.value.exit_code == 6
    assert "2.50 GiB requested" in caught.value.message
    assert "predicted a peak of 0." in caught.value.message
    assert "batch.device_sequences = 4" in caught.value.hint
    assert read_all(space.records) == []


def test_other_errors_are_not_called_memory(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "batch_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        tiny.run_here(space)
    assert threading.active_count() < 20  # the loader's thread is gone; torch keeps its own
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_evaluation_that_trains_is_refused(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = conductor.bestfit_bpb

    def training(model: Any, *arguments: Any) -> Any:
        with torch.no_grad():
            model.lm_head[0, 0] += 1e-3
        return real(model, *arguments)

    monkeypatch.setattr(conductor, "bestfit_bpb", training)
    with pytest.raises(VerificationFailed, match="weights changed"):
        tiny.run_here(space)
    assert read_all(space.records) == []


def test_a_second_run_of_the_same_seed_is_refused(space: Workspace) -> None:
    with held(folder_path(space.runs, "tiny", "tiny", 0)):
        code, output = tiny.bench(space, *tiny.run_words())
    assert code == PlanRefused.exit_code == 3
    assert f"is being run by process {os.getpid()}" in output
    assert "--seed" in output


@pytest.mark.parametrize("folder", [".runs", "leaderboard/records"])
def test_a_folder_that_cannot_be_written_is_told_before_training(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (space.root / folder).write_text("in the way")
    monkeypatch.setattr(training_run, "train", None)
    with pytest.raises(DataError) as caught:
        tiny.run_here(space)
    assert caught.value.exit_code == 5
    assert str(space.root / folder) in caught.value.message


def test_plans_and_seeds_that_cannot_be_run(space: Workspace) -> None:
    with pytest.raises(RecipeError, match="--seed -1"):
        tiny.run_here(space, seed_index=-1)
    tiny.write_recipe(space, batch={"tokens": 500})
    with pytest.raises(PlanRefused, match="whole rows"):
        tiny.run_here(space)
    assert not space.runs.exists()
