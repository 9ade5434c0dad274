"""A run whose batch grows: its rows, its rates, its record, and its resumption half-way up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from bench.data.loader import Cursor, Loader
from bench.data.prepared import Prepared
from bench.records.store import StoredRecord
from bench.records.verify import verify
from bench.spec.batch_ramp import growing
from bench.spec.track import load_track
from bench.spec.workspace import Workspace
from bench.training.loop import CheckpointDue, train
from model.schedule import StepScales, of_smaller_batch
from tests import tiny
from tests.data.shards import prepare_tiny

CHANGES = {
    "schedule": {"batch_warmup": {"ratio": 0.5, "start": 0.25}},
    "batch": {"device_sequences": 4},
    "checkpoint": {"every_steps": 7},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus."""
    return prepare_tiny(tmp_path_factory.mktemp("prepared"), vocab_size=384)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Workspace:
    """Of the tiny recipe, its batch growing."""
    return tiny.checkout(tmp_path_factory.mktemp("whole"), data, **CHANGES)


@pytest.fixture(scope="module")
def whole(checkout: Workspace) -> StoredRecord:
    """The run in one go."""
    return tiny.run_here(checkout)


def test_rates_and_decay_go_with_the_root_of_the_batch() -> None:
    """Per token, a decay of the weights by lr x wd is the same for every batch."""
    scales = of_smaller_batch(StepScales(0.8, 0.9, 0.5), 0.25)
    assert scales == StepScales(0.4, 0.9, 0.25)
    assert scales.learning_rate * scales.weight_decay == pytest.approx(0.25 * 0.8 * 0.5)
    assert of_smaller_batch(StepScales(0.8, 0.9, 0.5), 1.0) == StepScales(0.8, 0.9, 0.5)


def test_rows_are_those_of_a_constant_batch_in_the_same_order(prepared: Prepared) -> None:
    ramp, steps = growing(total=24, full=4, start=0.25, over=12)
    with Loader(prepared, 32, 2, 1, 0, 1, seed=3, device_pin=False) as loader:
        straight = [next(loader).buffer for _ in range(24)]
    with Loader(prepared, 32, 2, ramp, 0, 1, seed=3, device_pin=False) as loader:
        batches = [next(loader) for _ in range(24)]
        assert loader.cursor == Cursor(step=steps, micro=0)
        assert loader.progress().tokens == 24 * 2 * 32
    steps_of_batches = [step for step in range(steps) for _ in range(ramp.micros(step))]
    assert [batch.cursor.step for batch in batches] == steps_of_batches
    assert all(torch.equal(one.buffer, other) for one, other in zip(batches, straight, strict=True))
    for step in range(steps):
        with Loader(prepared, 32, 2, ramp, 0, 1, seed=3, device_pin=False) as loader:
            loader.seek(step)
            assert torch.equal(next(loader).buffer, straight[ramp.micro_index(step)])


def test_the_record_says_what_was_trained_on(checkout: Workspace, whole: StoredRecord) -> None:
    shape, plan = whole.record.shape, tiny.request(checkout).plan
    assert plan.tokens_of(0) == 128
    assert shape.steps == plan.iterations > tiny.STEPS
    assert shape.tokens == tiny.STEPS * 512 == plan.tokens
    assert len(whole.record.curves.losses) == shape.steps
    assert whole.record.features["batch_warmup"] == plan.batch_ramp.growing_steps / shape.steps > 0.0
    assert verify(whole, load_track(tiny.NAME, checkout.tracks)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens": 4096 - 128}, "3968 tokens are not"),
        ({"steps": 8}, "trained 8 steps"),
        ({"accumulation": 0}, "micro"),
    ],
)
def test_a_lie_about_it_is_found(
    checkout: Workspace, whole: StoredRecord, change: dict[str, int], told: str
) -> None:
    shape = msgspec.structs.replace(whole.record.shape, **change)
    record = msgspec.structs.replace(whole.record, shape=shape)
    found = verify(StoredRecord(whole.path, record), load_track(tiny.NAME, checkout.tracks))
    assert any(told in problem for problem in found)


def test_it_resumes_half_way_up_to_the_bit(
    checkout: Workspace, whole: StoredRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny.checkout(tmp_path, checkout.data, **CHANGES)
    ramp = tiny.request(space).plan.batch_ramp
    assert ramp.growing_steps > 7
    assert ramp.micro_index(7) > 7 * ramp.micros(0)

    def interrupted(*arguments: object, **named: object) -> object:
        for event in train(*arguments, **named):  # type: ignore[arg-type]
            yield event
            if isinstance(event, CheckpointDue):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bench.training_run.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_here(space)
    resumed = tiny.run_here(space, resume=True).record
    assert resumed.timing.num_resumes == 1
    assert resumed.curves.losses == whole.record.curves.losses
    assert resumed.scores.weights_sha256 == whole.record.scores.weights_sha256
    assert resumed.shape == whole.record.shape
    assert np.isfinite(resumed.timing.tokens_per_s_median)
