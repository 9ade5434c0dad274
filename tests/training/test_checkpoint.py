"""Checkpoints: every bit comes back, the newest two are kept, and a foreign one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.data.storage import sha256_file
from bench.errors import DataError, PlanRefused
from bench.training import checkpoint
from bench.training.build import build_trainer, seed_stream
from bench.training.checkpoint import RunState
from bench.training.loop import Trainer
from bench.training.run_folder import folder_path, held, require_folder
from model.schedule import StepScales
from tests import tiny

CPU = torch.device("cpu")


def trained(root: Path, num_steps: int = 2) -> Trainer:
    """The tiny model after steps on random gradients."""
    plan = tiny.request(tiny.checkout(root, root)).plan
    trainer = build_trainer(plan, CPU, torch.float32, seed=5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        for param in trainer.model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        trainer.optimizer.step(StepScales(1.0, 0.9, 1.0))
    trainer.optimizer.zero_grad(set_to_none=True)
    return trainer


def state(step: int, **changes: object) -> RunState:
    """Where a run stands."""
    fields = {"plan_sha256": "p", "seed": 7, "events_bytes": 10, "events_tip": "t", "seconds": {"train": 0.1}}
    return RunState(step=step, num_resumes=0, **(fields | changes))  # type: ignore[arg-type]


def save(folder: Path, trainer: Trainer, step: int) -> Path:
    """One checkpoint, told with the hash of its tensors."""
    saved = checkpoint.save(folder, trainer, state(step))
    assert saved is not None
    assert saved.tensors_sha256 == sha256_file(saved.folder / "tensors.safetensors")
    return saved.folder


def test_a_rank_that_does_not_write_leaves_nothing(tmp_path: Path) -> None:
    assert checkpoint.save(tmp_path / "run", trained(tmp_path), state(2), writes=False) is None
    assert not (tmp_path / "run").exists()


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that a checkpoint holds, copied."""
    return {name: tensor.clone() for name, tensor in checkpoint._tensors(trainer).items()}


def test_every_bit_comes_back(tmp_path: Path) -> None:
    one, other = trained(tmp_path), trained(tmp_path, num_steps=0)
    save(tmp_path / "run", one, 2)
    found = checkpoint.newest_whole(tmp_path / "run", "p", 7)
    assert found is not None
    assert (found[0].step, found[0].seconds) == (2, {"train": 0.1})
    checkpoint.restore(found[1], other)
    before, after = tensors_of(one), tensors_of(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kinds = {name.rpartition(".")[2] for name in before if name.startswith("optimizer.")}
    assert kinds == {"momentum", "second_moment", "exp_avg", "exp_avg_sq", "step"}


def test_a_restored_run_does_not_write_into_its_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "run", trained(tmp_path), 2) / "tensors.safetensors"
    content = path.read_bytes()
    other = trained(tmp_path, num_steps=0)
    found = checkpoint.newest_whole(tmp_path / "run", "p", 7)
    assert found is not None
    checkpoint.restore(found[1], other)
    for param in other.model.parameters():
        param.grad = torch.ones_like(param)
    other.optimizer.step(StepScales(1.0, 0.9, 1.0))
    assert path.read_bytes() == content


def test_two_are_kept_and_clear_removes_all(tmp_path: Path) -> None:
    trainer, folder = trained(tmp_path), tmp_path / "run"
    assert checkpoint.newest_whole(folder, "p", 7) is None
    for step in (2, 4, 10):
        save(folder, trainer, step)
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-00000004", "step-00000010"]
    save(folder, trainer, 10)  # again, over itself
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    checkpoint.clear(folder)
    assert list(folder.iterdir()) == []


def test_another_plan_or_seed_is_named(tmp_path: Path) -> None:
    save(tmp_path / "run", trained(tmp_path), 2)
    for plan, seed in (("q", 7), ("p", 8)):
        with pytest.raises(DataError, match="step-00000002 is of another plan or seed"):
            checkpoint.newest_whole(tmp_path / "run", plan, seed)


def test_another_text_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", trained(tmp_path), state(2, text_sha256="a"))
    assert checkpoint.newest_whole(tmp_path / "run", "p", 7, "a") is not None
    with pytest.raises(DataError, match="trained on another text"):
        checkpoint.newest_whole(tmp_path / "run", "p", 7, "b")


def drop(tensors: dict[str, Tensor]) -> None:
    """A parameter is missing."""
    del tensors["model.lm_head"]


def reshape(tensors: dict[str, Tensor]) -> None:
    """A parameter has another shape."""
    tensors["model.wte"] = tensors["model.wte"][1:]


def add(tensors: dict[str, Tensor]) -> None:
    """There is one that the model has not."""
    tensors["optimizer.other.0.momentum"] = torch.zeros(1)


@pytest.mark.parametrize("change", [drop, reshape, add])
def test_tensors_of_another_model_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    trainer = trained(tmp_path)
    tensors = tensors_of(trainer)
    change(tensors)
    with pytest.raises(DataError, match="checkpoint"):
        checkpoint.restore(tensors, trainer)


def test_no_permission_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        save(tmp_path / "run", trained(tmp_path), 2)
    for use in (require_folder, lambda path: held(path / "t").__enter__()):
        with pytest.raises(DataError) as caught:
            use(tmp_path / "run")
        assert caught.value.hint


def test_a_run_folder_is_one_processes(tmp_path: Path) -> None:
    folder = folder_path(tmp_path, "track", "recipe", 0)
    with held(folder):
        assert folder == tmp_path / "track" / "recipe" / "0"
        with pytest.raises(PlanRefused, match="track/recipe/0 is being run by process"):
            held(folder).__enter__()
        with held(folder_path(tmp_path, "track", "recipe", 1)):
            pass
    with held(folder):
        pass


def test_a_writable_folder_is_left_empty(tmp_path: Path) -> None:
    require_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_seed_streams_are_apart() -> None:
    streams = {seed_stream(seed, name) for seed in range(50) for name in ("torch", "init", "data", "probe")}
    assert len(streams) == 200
    assert all(0 <= stream < 2**63 for stream in streams)
    assert seed_stream(1, "init") == seed_stream(1, "init")
