"""Runs in float16: they learn, skip what overflows, end when no scale helps, resume and replay to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.data.loader import Loader
from bench.data.prepared import Prepared
from bench.errors import Diverged as DivergedError
from bench.host.device import open_device
from bench.host.planning import plan_submission
from bench.records.store import StoredRecord, read_all
from bench.replay import open_rerun, replay
from bench.spec.plan import Plan
from bench.spec.workspace import Workspace
from bench.training import checkpoint
from bench.training.activity import activity
from bench.training.build import build_trainer, loop_config, polar_dtype
from bench.training.checkpoint import RunState
from bench.training.loop import NOT_FINITE, SCALE_EXHAUSTED, Diverged, Event, StepsDone, Trainer, train
from kernels.polar_express import polar_express
from model.optimizers.loss_scaler import LossScaler
from tests import tiny
from tests.data.shards import prepare_tiny

CPU = torch.device("cpu")
STEPS = 6


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus of the tiny recipe's vocabulary."""
    return prepare_tiny(tmp_path_factory.mktemp("prepared"), vocab_size=384)


def built(root: Path, compute: str = "float16", **precision: Any) -> tuple[Plan, Trainer]:
    """The tiny recipe's plan and trainer, always from the same seed."""
    table = {"compute": compute, **precision}
    plan = tiny.request(tiny.checkout(root, root, precision=table, log={"every_steps": 2})).plan
    assert not plan.refusals
    return plan, build_trainer(plan, CPU, open_device("cpu").compute_dtype(compute), seed=5)


def events(
    trainer: Trainer, plan: Plan, prepared: Prepared, first: int = 0, last: int = STEPS
) -> list[Event]:
    """Of the steps from `first` to `last` of a run of STEPS."""
    config = loop_config(plan)._replace(log_every_steps=1, checkpoint_every_steps=0, state_steps=frozenset())
    rows, tokens = plan.device_sequences, plan.model.sequence_length
    with Loader(prepared, tokens, rows, plan.batch_ramp, 0, 1, seed=5, device_pin=False) as loader:
        loader.seek(first)
        batches = (one.to(CPU) for one in loader)
        return list(islice(train(trainer, batches, config, lambda _: STEPS, first), last - first))


def losses(found: list[Event]) -> list[float]:
    """Of all steps."""
    return [loss for event in found if isinstance(event, StepsDone) for loss in event.losses]


def weights(trainer: Trainer) -> list[Tensor]:
    """A copy of each parameter."""
    return [param.detach().clone() for param in trainer.model.parameters()]


def spoil(trainer: Trainer, is_spoiled: Iterator[bool]) -> None:
    """Let the gradient of the embedding overflow at the steps that the iterator says."""
    trainer.model.wte.register_hook(lambda grad: grad * float("inf") if next(is_spoiled) else grad)


def test_it_learns_as_float32_does(tmp_path: Path, prepared: Prepared) -> None:
    plan, trainer = built(tmp_path)
    seen = losses(events(trainer, plan, prepared))
    found = activity(plan, trainer, prepared)
    assert found["loss_scaling"] == 16.0
    assert found["steps_not_skipped"] == 1.0
    whole_plan, whole = built(tmp_path, "float32")
    expected = losses(events(whole, whole_plan, prepared))
    assert "loss_scaling" not in activity(whole_plan, whole, prepared)
    assert seen[-1] < seen[0] - 0.05
    assert seen == pytest.approx(expected, abs=0.02)
    assert seen != expected


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_elsewhere_nothing_is_scaled(tmp_path: Path, prepared: Prepared, compute: str) -> None:
    """Neither field changes a bit of a run in another dtype."""
    results = []
    for fields in ({}, {"initial_loss_scale": 8.0, "loss_scale_growth_steps": 1}):
        plan, trainer = built(tmp_path, compute, **fields)
        assert trainer.scaler is None
        results.append((losses(events(trainer, plan, prepared, last=3)), weights(trainer)))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_what_overflows_at_first_is_skipped_until_the_scale_fits(tmp_path: Path, prepared: Prepared) -> None:
    plan, trainer = built(tmp_path, initial_loss_scale=2.0**32)
    before = weights(trainer)
    found = events(trainer, plan, prepared, last=2)
    assert losses(found)[0] > 0.0
    assert all(map(torch.equal, before, weights(trainer)))
    assert trainer.scaler is not None
    assert float(trainer.scaler.scale) == 2.0**30
    trainer.scaler.scale.fill_(2.0**14)
    found = events(trainer, plan, prepared, 2)
    assert not any(isinstance(event, Diverged) for event in found)
    assert not any(map(torch.equal, before, weights(trainer)))
    assert activity(plan, trainer, prepared)["steps_not_skipped"] == pytest.approx(4 / 6)


def test_a_skipped_step_is_no_divergence_and_its_loss_is_known(tmp_path: Path, prepared: Prepared) -> None:
    plan, trainer = built(tmp_path)
    spoil(trainer, (micro // plan.accumulation in (1, 3) for micro in range(1000)))
    seen = losses(events(trainer, plan, prepared))
    assert len(seen) == STEPS
    assert seen[-1] < seen[0]
    assert trainer.scaler is not None
    assert trainer.scaler.counts.tolist() == [2, 2, 6]
    assert float(trainer.scaler.scale) == 2.0**14


def test_the_scale_doubles_on_the_way(tmp_path: Path, prepared: Prepared) -> None:
    plan, trainer = built(tmp_path, initial_loss_scale=16.0, loss_scale_growth_steps=2)
    events(trainer, plan, prepared)
    assert trainer.scaler is not None
    assert float(trainer.scaler.scale) == 128.0


def test_a_run_that_no_scale_helps_has_diverged_for_that_reason(tmp_path: Path, prepared: Prepared) -> None:
    plan, trainer = built(tmp_path, initial_loss_scale=2.0)
    spoil(trainer, (True for _ in range(1000)))
    found = events(trainer, plan, prepared, last=99)
    assert found[-1] == Diverged(2, SCALE_EXHAUSTED)
    assert len(losses(found)) == 2


def test_a_loss_that_is_not_finite_is_a_divergence_at_once(tmp_path: Path, prepared: Prepared) -> None:
    """Activations overflowed: no scale of the loss mends that."""
    plan, trainer = built(tmp_path)
    with torch.no_grad():
        trainer.model.head_weight().fill_(1e4)
        trainer.model.head_weight()[0] = float("nan")
    assert events(trainer, plan, prepared) == [Diverged(1, NOT_FINITE)]


def test_it_resumes_to_the_bit(tmp_path: Path, prepared: Prepared) -> None:
    """With a scale and counts of its own, in the middle of a row of good steps."""
    fields = {"initial_loss_scale": 64.0, "loss_scale_growth_steps": 2}
    plan, whole = built(tmp_path, **fields)
    expected = losses(events(whole, plan, prepared))
    _, killed = built(tmp_path, **fields)
    seen = losses(events(killed, plan, prepared, last=3))
    state = RunState(
        step=3, plan_sha256="plan", seed=5, events_bytes=0, events_tip="", seconds={}, num_resumes=0
    )
    checkpoint.save(tmp_path / "run", killed, state)
    _, after = built(tmp_path, **fields)
    found = checkpoint.newest_whole(tmp_path / "run", "plan", 5)
    assert found is not None
    checkpoint.restore(found[1], after)
    seen += losses(events(after, plan, prepared, 3))
    assert seen == expected
    assert all(map(torch.equal, weights(whole), weights(after)))
    assert activity(plan, after, prepared) == activity(plan, whole, prepared)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, StoredRecord]:
    """A checkout with one run."""
    space = tiny.checkout(tmp_path_factory.mktemp("ran"), precision={"compute": "float16"})
    return space, tiny.run_here(space)


def test_a_whole_run_is_recorded_verified_and_replayed_to_the_bit(
    ran: tuple[Workspace, StoredRecord],
) -> None:
    space, stored = ran
    assert tiny.problems(space, stored) == []
    record = stored.record
    assert record.shape.compute_dtype == "float16"
    assert record.features["loss_scaling"] == 16.0
    assert record.features["steps_not_skipped"] == 1.0
    asked = tiny.request(space)
    planned = plan_submission(asked.submission, asked.track, asked.facts, space, {})
    with tiny.torchs_settings_kept():
        again = replay(stored, open_rerun(stored, planned, space, {}), "nonce", 3, "here", lambda _: None)
    assert again.passed
    assert "the same bits" in again.says


def test_a_record_says_why_it_diverged(
    ran: tuple[Workspace, StoredRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proofs are those of the run before."""
    space, honest = ran
    tiny.write_recipe(space, precision={"compute": "float16", "initial_loss_scale": 1.0})
    monkeypatch.setattr("bench.training.build.LossScaler", overflowing)
    with pytest.raises(DivergedError, match="overflow float16") as error:
        tiny.run_here(space, seed_index=1)
    (stored,) = (found for found in read_all(space.records) if found.path != honest.path)
    assert "step 1" in error.value.message
    assert stored.record.status == "diverged"
    assert any(SCALE_EXHAUSTED in warning for warning in stored.record.warnings)
    assert [event.value for event in tiny.events_of(stored) if event.key == "diverged"] == [
        {"step": 1, "reason": SCALE_EXHAUSTED}
    ]
    assert tiny.problems(space, stored) == []


def overflowing(*arguments: Any) -> Any:
    """A scaler of gradients that overflow at each step."""
    scaler = LossScaler(*arguments)
    scaler._overflows = lambda grads: torch.tensor(True)  # type: ignore[method-assign]
    return scaler


def test_the_polar_iteration_is_not_in_float16() -> None:
    """A direction as small as gradients are keeps too few of its bits there."""
    for device in map(torch.device, ("cpu", "cuda", "mps")):
        assert polar_dtype(torch.float16, device) == torch.float32
    values, vectors = (
        torch.logspace(0, -3, 48),
        torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0)),
    )
    left, right = torch.linalg.qr(vectors)[0]
    direction = 1e-5 * (left * values) @ right
    exact = polar_express(direction[None].double())

    def distance(dtype: torch.dtype) -> float:
        return float((polar_express(direction[None].to(dtype)) - exact).norm() / exact.norm())

    assert distance(torch.float32) < 1e-3
    assert distance(torch.bfloat16) < 0.4
    assert distance(torch.float16) > 0.5
