"""What steps do not wait for: the collector where the recipe asks so, and a reading of numbers never."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.data.prepared import Prepared
from bench.training import loop
from tests import tiny
from tests.data.shards import prepare_tiny
from tests.host.test_collector import Cycle
from tests.training.test_activity import built, losses


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A prepared corpus."""
    return prepare_tiny(tmp_path / "prepared", vocab_size=384)


def seen_during_steps(space: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """(is the collector on, is the garbage of the step before gone) at each step of a run."""
    seen, last, real = [], [weakref.ref(Cycle())], loop._step

    def step(*arguments: Any) -> torch.Tensor:
        seen.append((gc.isenabled(), last[0]() is None))
        last[0] = weakref.ref(Cycle())
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        tiny.run_here(space)
    return seen


def test_a_run_collects_after_the_steps_it_names(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny.checkout(tmp_path, data, compile={"manual_gc_every_steps": 3})
    seen = seen_during_steps(space, monkeypatch)
    assert [enabled for enabled, _ in seen] == [False] * tiny.STEPS
    assert [i for i, (_, gone) in enumerate(seen) if gone and i] == [3, 6]
    assert gc.isenabled()
    tiny.write_recipe(space)
    seen = seen_during_steps(space, monkeypatch)  # one that does not ask keeps its collector
    assert [enabled for enabled, _ in seen] == [True] * tiny.STEPS


class Readings(TorchDispatchMode):
    """Counts the numbers that are read back to the host, each of which waits for the device."""

    num_readings = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_readings += function in (
            torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
        )  # fmt: skip
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("clip", "compute"),
    [("off", "float32"), ("weight_rms", "float32"), ("logit", "float32"), ("off", "float16")],
)
def test_a_step_reads_nothing_back(
    tmp_path: Path, prepared: Prepared, clip: str, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged is read when it is due: every third step here."""
    plan, trainer = built(
        tmp_path,
        optimizer={"muon": {"qk_clip": clip, "qk_clip_tau": 0.5}},
        log={"every_steps": 3},
        precision={"compute": compute},
    )
    real, counts = loop._step, []

    def step(*arguments: Any) -> torch.Tensor:
        with Readings() as readings:
            loss = real(*arguments)
        counts.append(readings.num_readings)
        return loss

    monkeypatch.setattr(loop, "_step", step)
    losses(trainer, plan, prepared, 0, 6)
    with Readings() as readings:
        assert torch.ones(1).sum().item() == 1.0
    assert (counts, readings.num_readings) == ([0] * 6, 1)
