"""The whole flow on a tiny recipe: what a record holds, what faults leave behind, where each second goes."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.run as conductor
from bench.board.build import board_text
from bench.data.loader import Loader
from bench.errors import (
    BenchError,
    DataError,
    Diverged,
    OutOfMemory,
    PlanRefused,
    RecipeError,
    VerificationFailed,
)
from bench.evaluation import bits_per_byte
from bench.host.clock import CATEGORIES, Ledger
from bench.host.console import Console
from bench.host.device import Device
from bench.records.events import Event, read_events
from bench.records.schema import encode
from bench.records.store import StoredRecord, read, read_all
from bench.records.verify import verify
from bench.run import run
from bench.spec.track import load_track, seed_value
from bench.spec.workspace import Workspace
from bench.training import checkpoint, loop
from bench.training.run_folder import run_folder
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, StoredRecord]:
    """A checkout with one finished run, which scored every third step."""
    space = tiny.checkout(tmp_path_factory.mktemp("first"), data, eval={"every_steps": 3})
    return space, tiny.run_here(space)


@pytest.fixture
def space(data: Path, tmp_path: Path) -> Workspace:
    """A checkout of the tiny recipe."""
    return tiny.checkout(tmp_path, data)


def problems(space: Workspace, stored: StoredRecord) -> list[str]:
    """What `bench verify` says."""
    return verify(stored, load_track("tiny", space.tracks))


def events_of(stored: StoredRecord) -> list[Event]:
    """The events beside a record, their chain checked."""
    return list(read_events(stored.events_path.read_bytes(), "events"))


def test_a_run_writes_a_record_that_holds(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    record = stored.record
    assert problems(space, stored) == []
    assert stored.path.read_bytes() == encode(record)
    assert record.status == "ok"
    assert (record.shape.steps, len(record.curves.losses)) == (tiny.STEPS, tiny.STEPS)
    assert record.curves.losses[0] == pytest.approx(math.log(384), abs=0.05)
    assert record.curves.losses[-1] < record.curves.losses[0] - 0.05
    assert record.scores.final_train_loss == record.curves.losses[-1]
    assert record.scores.value == record.scores.val_bpb == record.curves.bpbs[-1]
    assert record.scores.min_val_bpb == min(record.curves.bpbs)
    assert record.curves.bpb_steps == [3, 6, 8]
    assert record.shape.tokens == tiny.STEPS * 512
    assert record.memory.peak_bytes > 10**7
    assert record.identity.seed == seed_value(load_track("tiny", space.tracks).track, 0)


def test_the_times_add_up(first: tuple[Workspace, StoredRecord]) -> None:
    timing = first[1].record.timing
    assert tuple(sorted(timing.ledger)) == tuple(sorted(CATEGORIES))
    assert sum(timing.ledger.values()) == pytest.approx(timing.wall_s, rel=5e-3)
    assert timing.official_s == timing.ledger["train"] + timing.ledger["data_wait"]
    assert timing.cold_s == pytest.approx(timing.official_s + timing.ledger["warmup"])
    assert (
        min(timing.ledger[name] for name in ("import", "data", "warmup", "train", "eval", "checkpoint")) > 0
    )
    assert timing.nanochat_rule_s == 0.0  # none of its steps is beyond the eleventh
    assert timing.step_median_s <= timing.step_p90_s
    assert timing.tokens_per_s_median == pytest.approx(512 / timing.step_median_s)
    assert timing.mfu is None


def test_the_data_is_named_by_hash(first: tuple[Workspace, StoredRecord]) -> None:
    used = first[1].record.data
    assert [name for name, _, _ in used.files] == [f"shard_{i:05d}.parquet" for i in range(3)]
    for sha256 in (
        used.corpus_sha256,
        used.tokenizer_sha256,
        used.validation_sha256,
        *(f[2] for f in used.files),
    ):
        assert len(sha256) == 64
    assert 0 < used.validation_bytes <= 4000
    assert 0 < used.train_tokens_unique < used.train_tokens_available
    assert 0 < used.epochs < 1


def test_the_events_lead_to_the_record(first: tuple[Workspace, StoredRecord]) -> None:
    record, events = first[1].record, events_of(first[1])
    three, score = ["step"] * 3, "eval_accuracy"
    keys = ["run_start", *three, score, *three, score, "step", "step", score, "run_stop"]
    assert [event.key for event in events] == keys
    assert events[-1].hash == record.events_sha256_tip
    steps = [event.value for event in events if event.key == "step"]
    assert [loss for step in steps for loss in step["losses"]] == record.curves.losses
    assert [round(step["official_s"], 4) for step in steps] == record.curves.logged_seconds
    times = [event.time_s for event in events]
    assert times == sorted(times)


def test_the_next_run_takes_the_next_seed(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    second = tiny.run_here(space)
    try:
        assert second.record.identity.seed_index == 1
        assert problems(space, second) == []
        assert second.record.curves.losses != stored.record.curves.losses
        assert second.record.scores.weights_sha256 != stored.record.scores.weights_sha256
        assert "2" in board_text(space)
    finally:
        second.path.unlink()


def test_the_same_seed_gives_the_same_bits(first: tuple[Workspace, StoredRecord], space: Workspace) -> None:
    """Whatever else is done meanwhile: no evaluations here, and rows of another split."""
    one, again = first[1].record, tiny.run_here(space).record
    assert again.curves.losses == one.curves.losses
    assert again.scores.weights_sha256 == one.scores.weights_sha256
    assert again.scores.val_bpb == one.scores.val_bpb
    tiny.write_recipe(space, batch={"device_sequences": 4})
    split = tiny.run_here(space, seed_index=0).record
    assert split.curves.losses == pytest.approx(one.curves.losses, abs=1e-5)
    assert split.scores.val_bpb == pytest.approx(one.scores.val_bpb, rel=1e-5)
    assert split.scores.val_bpb_bestfit == pytest.approx(one.scores.val_bpb_bestfit, rel=1e-5)


def test_without_the_warm_up_the_losses_are_equal(
    first: tuple[Workspace, StoredRecord], space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "warm_up", lambda *arguments: None)
    assert tiny.run_here(space).record.curves.losses == first[1].record.curves.losses


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def slow(self, patch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> None:
        """Let each call of this function take so long."""
        real = getattr(owner, name)

        def slowed(*arguments: Any, **options: Any) -> Any:
            self.now_s += seconds
            return real(*arguments, **options)

        patch.setattr(owner, name, slowed)


def run_by(clock: Clock, space: Workspace, console: Console | None = None, **options: Any) -> StoredRecord:
    """A run whose only time is the clock's."""
    threads = torch.get_num_threads()
    try:
        return read(run(tiny.request(space, **options), Ledger(clock=clock), console or tiny.quiet()))
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def test_every_second_is_in_its_category(
    first: tuple[Workspace, StoredRecord], space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    tiny.write_recipe(space, eval={"every_steps": 4})
    for owner, name, seconds in (
        (conductor, "open_corpus", 2.0**-1),
        (conductor, "build_trainer", 2.0**-2),
        (conductor, "warm_up", 2.0**-3),
        (loop, "_step", 2.0**-4),
        (Loader, "__next__", 2.0**-5),
        (conductor, "documents_bpb", 2.0**-6),
        (checkpoint, "save", 2.0**-7),
        (Device, "sample_memory", 2.0**-8),
        (conductor, "probe", 2.0**-9),
    ):
        clock.slow(monkeypatch, owner, name, seconds)
    record = run_by(clock, space).record
    expected = dict.fromkeys(CATEGORIES, 0.0) | {
        "data": 2.0**-1,
        "warmup": 2.0**-2 + 2.0**-3,
        "train": 8 * 2.0**-4,
        "data_wait": 16 * 2.0**-5,  # 8 steps of 2 micro-batches
        "eval": 2 * 2.0**-6 + 2.0**-9,
        "checkpoint": 4 * 2.0**-7,
        "other": 8 * 2.0**-8,
    }
    assert record.timing.ledger == expected
    assert record.timing.wall_s == sum(expected.values())
    assert record.timing.official_s == 1.0
    assert record.curves.logged_seconds == [0.125 * step for step in range(1, 9)]
    assert (record.timing.step_median_s, record.timing.step_p90_s) == (0.125, 0.125)


def test_a_slow_loader_is_remarked(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.slow(monkeypatch, loop, "_step", 1.0)
    clock.slow(monkeypatch, Loader, "__next__", 0.05)
    record = run_by(clock, space).record
    assert record.timing.data_wait_share == pytest.approx(0.1 / 1.1)
    assert any("data wait is 9.1%" in warning for warning in record.warnings)


@pytest.mark.parametrize("step_s", [0.11, 0.4])
def test_a_time_horizon_ends_within_a_step_of_its_budget(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    clock = Clock()
    tiny.write_recipe(
        space, horizon={"seconds": 2.0}, schedule={"warmdown_ratio": 0.5, "final_lr_fraction": 0.1}
    )
    clock.slow(monkeypatch, loop, "_step", step_s)
    stored = run_by(clock, space)
    record = stored.record
    assert problems(space, stored) == []
    assert abs(record.timing.official_s - 2.0) <= step_s / 2
    assert record.shape.steps == round(2.0 / step_s)
    last = [event for event in events_of(stored) if event.key == "step"][-1]
    warmdown_steps = round(0.5 * record.shape.steps)
    assert last.value["learning_rate"] == pytest.approx(0.1 + 0.9 / warmdown_steps, abs=0.1)


def test_a_time_horizon_is_resumed(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
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
            run_by(clock, space)
    stored = run_by(clock, space, resume=True)
    assert problems(space, stored) == []
    assert stored.record.shape.steps == 10
    assert stored.record.timing.official_s == pytest.approx(2.0)
    assert stored.record.curves.logged_seconds == pytest.approx([0.2 * step for step in range(1, 11)])


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
    assert problems(space, stored) == []
    assert stored.path.read_bytes() == encode(record)
    assert record.status == "diverged"
    assert record.shape.steps == step
    assert len(record.curves.losses) == step - 1
    assert None not in record.curves.losses
    assert (record.scores.value, record.scores.val_bpb, record.scores.weights_sha256) == (None, None, "")
    assert any(f"diverged at step {step}" in warning for warning in record.warnings)
    assert [event.key for event in events_of(stored)][-2:] == ["diverged", "run_stop"]
    assert "tiny (1 run(s))" in board_text(space)
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
    assert problems(space, stored) == []
    assert len(stored.record.curves.losses) == tiny.STEPS


def test_a_score_that_is_not_finite_is_a_divergence(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bits_per_byte._token_losses
    monkeypatch.setattr(bits_per_byte, "_token_losses", lambda *arguments: real(*arguments) / 0.0)
    tiny.write_recipe(space, eval={"every_steps": 3})
    with pytest.raises(Diverged, match="step 3"):
        tiny.run_here(space)
    (stored,) = read_all(space.records)
    assert problems(space, stored) == []
    assert stored.record.curves.bpbs == []


def test_an_absurd_learning_rate_is_a_divergence(space: Workspace) -> None:
    """Weight decay times such a rate multiplies the head by 1e5 and more a step, to infinity."""
    tiny.write_recipe(space, optimizer={"adamw": {"lm_head": {"lr": 1e6, "weight_decay": 1.0}}})
    with pytest.raises(Diverged) as caught:
        tiny.run_here(space)
    assert caught.value.exit_code == 7
    (stored,) = read_all(space.records)
    assert problems(space, stored) == []
    assert stored.record.scores.value is None


def test_a_model_that_died_has_no_score(space: Workspace) -> None:
    """Finite weights, but every prediction the same."""
    tiny.write_recipe(
        space, optimizer={"muon": {"lr": 1e6}, "adamw": {"wte": {"lr": 1e6}, "x0": {"lr": 1e6}}}
    )
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
    with run_folder(space.runs, "tiny", "tiny", 0):
        code, output = tiny.bench(space, *tiny.run_words())
    assert code == PlanRefused.exit_code == 3
    assert f"is being run by process {os.getpid()}" in output
    assert "--seed" in output


@pytest.mark.parametrize("folder", [".runs", "leaderboard/records"])
def test_a_folder_that_cannot_be_written_is_told_before_training(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (space.root / folder).write_text("in the way")
    monkeypatch.setattr(conductor, "train", None)
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


@pytest.fixture
def changed_paths() -> Iterator[list[str]]:
    """Every path that this process creates, renames or removes meanwhile, and every connection."""
    seen: list[str] = []
    active = True
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if not active:
            return
        if name.startswith("socket.") and name != "socket.gethostname":
            seen.append(f"{name} {arguments}")
        elif name == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            seen.append(arguments[0])
        elif name in changes:
            seen.extend(str(path) for path in arguments if isinstance(path, str | os.PathLike))

    sys.addaudithook(hook)
    yield seen
    active = False


def test_nothing_is_written_elsewhere_and_no_one_is_called(
    space: Workspace, changed_paths: list[str]
) -> None:
    tiny.run_here(space)
    owned = (str(space.runs), str(space.records), str(space.data))
    assert changed_paths
    relative = {path for path in changed_paths if not path.startswith("/")}  # of a folder open by descriptor
    assert all("/" not in path for path in relative)
    foreign = [path for path in changed_paths if path not in relative and not path.startswith(owned)]
    assert [
        path for path in foreign if path not in ("/dev/null", str(space.runs.parent / "leaderboard"))
    ] == []


def test_the_console_says_what_happens(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), Clock()
    clock.slow(monkeypatch, loop, "_step", 0.5)
    tiny.write_recipe(space, eval={"every_steps": 4})
    run_by(clock, space, console=Console(stream=stream, every_s=0.0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "data: folder:tiny, 384-token vocabulary"
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == [
        f"step {i}/8" for i in range(1, 9)
    ]
    assert "  1,024 tok/s  " in lines[2]
    assert lines[-1] == "evaluating"


def test_errors_have_codes_that_scripts_can_read(space: Workspace) -> None:
    code, output = tiny.bench(space, *tiny.run_words("--json"))
    assert (code, output) == (0, "")
    told = json.loads((space.root / "out").read_text())
    assert read(Path(told["record"])).record.scores.val_bpb == told["scores"]["val_bpb"]
    assert issubclass(Diverged, BenchError)
