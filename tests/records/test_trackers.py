"""What a tracker is told of a run's events, and that none is imported unasked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import ARGUMENTS
from bench.errors import DataError, VerificationFailed
from bench.records.events import chained, read_events
from bench.records.trackers import OPENERS, open_tracker, points
from tests.records.sample import LOSSES, event_log

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_offers_those_there_are() -> None:
    assert set(ARGUMENTS["--tracker"]["choices"]) == set(OPENERS)


def test_every_step_and_score_is_told_once() -> None:
    log, _, _ = event_log(LOSSES, 2.5, seed=1)
    told = [point for event in read_events(log, "log") for point in points(event)]
    assert [point.figures["loss"] for point in told[:-1]] == LOSSES
    assert [point.step for point in told] == [*range(1, 65), 64]
    assert told[-1].figures == {"val_bpb": 2.5}
    assert told[63].figures["official_s"] == pytest.approx(15.0)


@given(losses=st.lists(st.floats(0, 20), min_size=1, max_size=9), last=st.integers(9, 10**6))
def test_losses_read_back_together_belong_to_their_steps(losses: list[float], last: int) -> None:
    value = {"step": last, "losses": losses, "official_s": 3.0, "learning_rates": [0.5] * len(losses)}
    told = list(points(chained("0" * 64, "step", 1.0, value)))
    assert [(point.step, point.figures["loss"]) for point in told] == [
        (last - len(losses) + 1 + at, loss) for at, loss in enumerate(losses)
    ]
    assert ["official_s" in point.figures for point in told] == [False] * (len(losses) - 1) + [True]


@pytest.mark.parametrize("value", [{}, {"step": "x", "losses": [], "official_s": 0.0}, {"step": 1}])
def test_an_edited_event_is_an_error_not_a_traceback(value: dict[str, object]) -> None:
    with pytest.raises(VerificationFailed):
        list(points(chained("0" * 64, "step", 1.0, value)))


def test_one_that_is_not_installed_is_told_with_the_command_that_installs_it(tmp_path: Path) -> None:
    missing = [
        name for name in OPENERS if subprocess.call([sys.executable, "-c", f"import {name}"], stderr=-3)
    ]
    for name in missing:
        with pytest.raises(DataError) as caught:
            open_tracker(name, "run", tmp_path, {})
        assert caught.value.hint == f"python -m pip install {name}"


def test_the_real_tensorboard_writes_what_it_reads(tmp_path: Path) -> None:
    """Where it is installed; elsewhere its writer's calls cannot be told from a copy of them."""
    pytest.importorskip("tensorboard")
    loader_of = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader").EventFileLoader
    opened = open_tracker("tensorboard", "t/quick/0", tmp_path, {})
    for step in (1, 2):
        opened.log(step, {"loss": 8.0 - step})
    opened.finish()
    (path,) = (tmp_path / "tensorboard" / "t" / "quick" / "0").iterdir()
    seen = [(event.step, value.tag) for event in loader_of(str(path)).Load() for value in event.summary.value]
    assert seen == [(1, "loss"), (2, "loss")]
