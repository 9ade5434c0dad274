"""The loop: which events come when, what divergence does, what splitting and warm-up must not change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.loader import Batch, Cursor, Loader
from bench.data.prepared import Prepared
from bench.evaluation.probes import weights_sha256
from bench.training import loop
from bench.training.build import build_trainer, loop_config
from bench.training.loop import (
    CheckpointDue,
    Diverged,
    EvalDue,
    LoopConfig,
    StepsDone,
    Trainer,
    train,
    warm_up,
)
from model.schedule import ScheduleConfig
from tests import tiny
from tests.data.shards import prepare_tiny

CPU = torch.device("cpu")
SCHEDULE = ScheduleConfig(
    warmup_steps=2,
    warmdown_ratio=0.5,
    warmdown_shape="linear",
    final_lr_fraction=0.05,
    momentum_start=0.85,
    momentum_peak=0.97,
    momentum_end=0.9,
    momentum_warmup_steps=4,
    weight_decay_shape="cosine",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus of the tiny recipe's vocabulary."""
    return prepare_tiny(tmp_path_factory.mktemp("prepared"), vocab_size=384)


def trainer(root: Path, **changes: Any) -> Trainer:
    """The tiny recipe's model and optimizer, always from the same seed."""
    plan = tiny.request(tiny.checkout(root, root, **changes)).plan
    return build_trainer(plan, CPU, torch.float32, seed=5)


def losses_of(
    prepared: Prepared, one: Trainer, rows: int, accumulation: int, num_steps: int = 6
) -> list[float]:
    """Losses of a run in float32; rows of a step are the same however they are split."""
    config = LoopConfig(accumulation, SCHEDULE, 1, 0, 0)
    with Loader(prepared, 32, rows, accumulation, 0, 1, seed=3, device_pin=False) as loader:
        events = list(train(one, loader, config, lambda step: num_steps))
    return [loss for event in events if isinstance(event, StepsDone) for loss in event.losses]


def test_splitting_a_batch_changes_nothing_but_rounding(prepared: Prepared, tmp_path: Path) -> None:
    whole = losses_of(prepared, trainer(tmp_path), rows=16, accumulation=1)
    assert whole[-1] < whole[0] - 0.01
    for rows, accumulation in ((1, 16), (4, 4), (8, 2)):
        split = losses_of(prepared, trainer(tmp_path), rows, accumulation)
        assert split == pytest.approx(whole, abs=1e-5)
    assert losses_of(prepared, trainer(tmp_path), rows=8, accumulation=1) != pytest.approx(whole, abs=1e-5)


def state_sha256(one: Trainer) -> str:
    """Hash of weights, gradients and optimizer state."""
    digest = hashlib.sha256(weights_sha256(one.model).encode())
    for group in one.optimizer.param_groups:
        for param in group["params"]:
            digest.update(str(param.grad).encode())
            for name, value in sorted(one.optimizer.state.get(param, {}).items()):
                digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_warm_up_leaves_everything_as_it_was(prepared: Prepared, tmp_path: Path) -> None:
    one = trainer(tmp_path)
    losses_of(prepared, one, rows=4, accumulation=1, num_steps=2)  # so that there is optimizer state
    before, generator = state_sha256(one), torch.get_rng_state()
    with Loader(prepared, 32, 4, 1, 0, 1, seed=3, device_pin=False) as loader:
        next(loader)
        cursor = loader.cursor
        warm_up(one, 4, 32, CPU)
        assert loader.cursor == cursor
    assert state_sha256(one) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_warm_up_or_none_the_losses_are_equal(prepared: Prepared, tmp_path: Path) -> None:
    warm, cold = trainer(tmp_path), trainer(tmp_path)
    warm_up(warm, 4, 32, CPU)
    assert losses_of(prepared, warm, 4, 1) == losses_of(prepared, cold, 4, 1)
    assert state_sha256(warm) == state_sha256(cold)


def endless() -> Iterator[Batch]:
    """Batches for a loop whose steps are replaced."""
    while True:
        yield Batch(torch.zeros((2, 1, 1), dtype=torch.int64), Cursor(step=0, micro=0))


class Steps:
    """Stands in for the training step: hands out losses; one may leave weights that are not finite."""

    def __init__(self, losses: list[float], spoiled: int | None = None) -> None:
        self.losses, self.spoiled, self.learning_rates = losses, spoiled, list[float]()
        self.trainer = Trainer(torch.nn.Linear(1, 1), torch.nn.Identity(), None)  # type: ignore[arg-type]

    def __call__(self, trainer: Trainer, batches: Any, accumulation: int, scales: Any) -> torch.Tensor:
        self.learning_rates.append(scales.learning_rate)
        if len(self.learning_rates) == self.spoiled:
            with torch.no_grad():
                trainer.model.weight.fill_(math.inf)
        return torch.tensor(self.losses[len(self.learning_rates) - 1], dtype=torch.float64)

    def events(self, config: LoopConfig, first_step: int = 0) -> list[loop.Event]:
        """All events of a run whose steps are these."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_step", self)
            return list(train(self.trainer, endless(), config, lambda step: len(self.losses), first_step))


intervals = st.integers(0, 7)


@given(
    num_steps=st.integers(1, 20), log=st.integers(1, 7), evaluate=intervals, save=intervals, data=st.data()
)
def test_events_come_in_order_and_hold_every_step(
    num_steps: int, log: int, evaluate: int, save: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, num_steps - 1))
    losses = [float(i) for i in range(1, num_steps + 1)]
    steps = Steps(losses)
    steps.learning_rates += [0.0] * first
    events = steps.events(LoopConfig(1, SCHEDULE, log, evaluate, save), first)
    done = [event for event in events if isinstance(event, StepsDone)]
    assert [loss for event in done for loss in event.losses] == losses[first:]
    inner = range(first + 1, num_steps)
    assert [e.step for e in events if isinstance(e, EvalDue)] == [
        s for s in inner if evaluate and s % evaluate == 0
    ]
    assert [e.step for e in events if isinstance(e, CheckpointDue)] == [
        s for s in inner if save and s % save == 0
    ]
    assert {step for step in inner if step % log == 0} <= {event.step for event in done}
    known = first
    for event in events:  # whoever looks at a step finds its losses read, and its score before its checkpoint
        if isinstance(event, StepsDone):
            assert event.step == known + len(event.losses)
            assert event.losses[-1] == event.step
            known = event.step
        else:
            assert event.step == known
    order = [
        (event.step, not isinstance(event, StepsDone), isinstance(event, CheckpointDue)) for event in events
    ]
    assert order == sorted(order)


@given(num_steps=st.integers(1, 20), log=st.integers(1, 7), save=intervals, data=st.data())
def test_the_first_loss_that_is_not_finite_ends_the_run(
    num_steps: int, log: int, save: int, data: st.DataObject
) -> None:
    bad = data.draw(st.integers(1, num_steps))
    value = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    steps = Steps([1.0] * (bad - 1) + [value] + [2.0] * (num_steps - bad))
    events = steps.events(LoopConfig(1, SCHEDULE, log, 0, save))
    assert events[-1] == Diverged(bad)
    assert sum(isinstance(event, Diverged) for event in events) == 1
    losses = [loss for event in events if isinstance(event, StepsDone) for loss in event.losses]
    assert losses == [1.0] * (bad - 1)
    assert all(event.step < bad for event in events if isinstance(event, CheckpointDue))
    assert len(steps.learning_rates) < bad + log  # no step after the losses were read


@given(num_steps=st.integers(1, 12), log=st.integers(1, 4), every=st.integers(0, 4), data=st.data())
def test_weights_that_are_not_finite_are_neither_scored_nor_saved(
    num_steps: int, log: int, every: int, data: st.DataObject
) -> None:
    spoiled = data.draw(st.integers(1, num_steps))
    events = Steps([1.0] * num_steps, spoiled).events(LoopConfig(1, SCHEDULE, log, every, every))
    assert isinstance(events[-1], Diverged)
    assert events[-1].step >= spoiled
    assert all(event.step < spoiled for event in events if isinstance(event, EvalDue | CheckpointDue))


def test_a_resumed_run_that_is_over_does_nothing() -> None:
    assert Steps([1.0] * 3).events(LoopConfig(1, SCHEDULE, 1, 1, 1), first_step=3) == []


def test_the_loop_gets_the_recipes_intervals(tmp_path: Path) -> None:
    space = tiny.checkout(tmp_path, log={"every_steps": 3}, eval={"every_steps": 4})
    config = loop_config(tiny.request(space).plan)
    found = (
        config.log_every_steps,
        config.eval_every_steps,
        config.checkpoint_every_steps,
        config.accumulation,
    )
    assert found == (3, 4, 2, 2)


def test_the_schedule_is_asked_for_every_step() -> None:
    steps = Steps([1.0] * 8)
    steps.events(LoopConfig(1, SCHEDULE, 3, 0, 0))
    rates = steps.learning_rates
    assert rates[:2] == [0.5, 1.0]
    assert rates[4:] == pytest.approx([0.05 + 0.95 * (1 - k / 4) for k in range(4)])
    assert next(count(len(rates))) == 8
