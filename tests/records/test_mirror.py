"""A run shown in a tracker: what it is told, and that nothing it does reaches the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.errors import BenchError, Diverged
from bench.records.events import EventLog
from bench.records.mirror import mirrored
from bench.records.store import write_once
from tests.records.sample import LOSSES, ROOT, quick_recipe, sample
from tests.records.tracker_packages import (
    CONNECTING,
    HANGING,
    RAISING,
    SITE,
    TRACKIO,
    WANDB,
    notes,
    write_package,
)

# A run that is killed after its first step.
KILLED = """
import os, signal, sys
from pathlib import Path
from bench.records.events import EventLog
from bench.records.mirror import mirrored

with mirrored("trackio", Path(sys.argv[1]), Path(sys.argv[2]), os.environ, print):
    log = EventLog(Path(sys.argv[1]) / "events.jsonl")
    log.append("run_start", 0.0, recipe="r")
    log.append("step", 1.0, step=1, losses=[8.0], official_s=1.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Stage:
    """A folder with a tracker's package, and what became of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = folder / "runs" / "cpu-quick" / "quick" / "0"
        self.run.mkdir(parents=True)
        self.packages, self.calls, self.network = (folder / name for name in ("packages", "calls", "network"))
        self.data = folder / "data"
        self.warnings: list[str] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.packages),
            "TRACKER_NOTES": str(self.calls),
            "NETWORK_NOTES": str(self.network),
        }
        self.environment.pop("WANDB_MODE", None)
        monkeypatch.syspath_prepend(str(self.packages))

    def has(self, name: str, source: str) -> None:
        write_package(self.packages, name, source)
        (self.packages / "sitecustomize.py").write_text(SITE)

    def train(self, tracker: str | None, grace_s: float = 20.0) -> float:
        """A run's log, written while a tracker is shown it; returns the seconds that the writing took."""
        with mirrored(tracker, self.run, self.data, self.environment, self.warnings.append, grace_s):
            begun = time.perf_counter()
            log = EventLog(self.run / "events.jsonl")
            log.append("run_start", 0.0, recipe="r", plan="p", seed=7)
            for step, loss in enumerate(LOSSES, start=1):
                log.append("step", step / 8, step=step, losses=[loss], official_s=step / 8)
            log.append("eval_accuracy", 9.0, step=64, val_bpb=2.5, nats=1.0)
            log.append("run_stop", 9.1, status="ok")
            log.close()
            return time.perf_counter() - begun


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.mark.parametrize(("name", "source"), [("trackio", TRACKIO), ("wandb", WANDB)])
def test_a_tracker_is_told_all_of_a_run(name: str, source: str, stage: Stage) -> None:
    stage.has(name, source)
    stage.train(name)
    calls = notes(stage.calls)
    assert [call["call"] for call in calls] == ["import", "init", *["log"] * 65, "finish"]
    assert (calls[1]["project"], calls[1]["name"]) == ("speedrun-bench", "cpu-quick/quick/0")
    assert calls[1]["config"] == {"recipe": "r", "plan": "p", "seed": 7}
    assert [call["loss"] for call in calls if "loss" in call] == LOSSES
    assert calls[-2] == {"call": "log", "step": 64, "val_bpb": 2.5}
    assert stage.warnings == []


def test_by_default_nothing_is_sent_and_the_run_goes_first(stage: Stage) -> None:
    stage.has("wandb", WANDB)
    stage.train("wandb")
    assert notes(stage.calls)[0]["mode"] == "offline"
    assert notes(stage.calls)[0]["nice"] == 19
    assert not stage.network.exists()


def test_who_wants_it_sent_says_so(stage: Stage) -> None:
    stage.has("wandb", WANDB)
    stage.environment["WANDB_MODE"] = "online"
    stage.train("wandb")
    assert notes(stage.calls)[0]["mode"] == "online"


@pytest.mark.parametrize(
    ("source", "says"),
    [(RAISING, "no licence for this machine"), (CONNECTING, "the network is blocked"), ("(", "SyntaxError")],
)
def test_one_that_fails_costs_one_line(source: str, says: str, stage: Stage) -> None:
    stage.has("trackio", source)
    stage.train("trackio")
    (warning,) = stage.warnings
    assert "\n" not in warning
    assert says in warning
    assert "the run is not affected" in warning


def test_one_that_hangs_is_left_behind(stage: Stage) -> None:
    stage.has("trackio", HANGING)
    begun = time.perf_counter()
    assert stage.train("trackio", grace_s=2.0) < 1.0
    assert time.perf_counter() - begun < 10.0
    (warning,) = stage.warnings
    assert "did not finish within 2 s" in warning


def test_a_run_that_is_killed_leaves_no_process_behind(stage: Stage) -> None:
    stage.has("trackio", TRACKIO)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(stage.run), str(stage.data)],
        cwd=ROOT,
        env=stage.environment,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    deadline_s = time.monotonic() + 300.0  # at the lowest priority, beside a busy process on each core
    while not (calls := notes(stage.calls)) or calls[-1]["call"] != "finish":
        assert time.monotonic() < deadline_s, calls
        time.sleep(0.1)
    assert [call["call"] for call in calls] == ["import", "init", "log", "finish"]


def test_one_that_is_not_installed_is_told_at_once(stage: Stage) -> None:
    stage.train("trackio-of-nobody")
    (warning,) = stage.warnings
    assert "not installed" in warning
    assert len((stage.run / "events.jsonl").read_bytes().splitlines()) == 67


def test_a_folder_of_its_name_is_no_tracker(stage: Stage) -> None:
    """wandb leaves a folder `wandb` where it ran, and Python takes any folder for a package."""
    (stage.packages / "wandb").mkdir(parents=True)
    stage.train("wandb")
    assert "not installed" in stage.warnings[0]


def test_a_run_that_fails_fails_as_without_a_tracker(stage: Stage) -> None:
    stage.has("trackio", RAISING)
    failure = Diverged("not finite at step 3", "lower the learning rates")
    with (
        pytest.raises(BenchError) as caught,
        mirrored("trackio", stage.run, stage.data, stage.environment, stage.warnings.append),
    ):
        raise failure
    assert caught.value is failure


def test_none_is_imported_unasked(stage: Stage) -> None:
    for name, source in (("wandb", WANDB), ("trackio", TRACKIO), ("tensorboard", RAISING)):
        stage.has(name, source)
    stage.train(None)
    assert notes(stage.calls) == []


def mirror(stage: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "mirror", *words, "--data", str(stage.data)]
    return subprocess.run(
        command, cwd=ROOT, env=stage.environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_record_can_be_shown_afterwards(stage: Stage, tmp_path: Path) -> None:
    stage.has("trackio", TRACKIO)
    path = write_once(tmp_path / "records", *sample())
    done = mirror(stage, str(path), "--tracker", "trackio")
    assert (done.returncode, done.stdout) == (0, "cpu-quick/quick/0: 67 events in trackio\n")
    calls = notes(stage.calls)
    assert calls[1]["config"]["recipe"]["model"]["depth"] == quick_recipe().model.depth
    assert [call["loss"] for call in calls if "loss" in call] == LOSSES


def test_a_runs_folder_can_be_shown_too(stage: Stage) -> None:
    stage.has("trackio", TRACKIO)
    stage.train(None)
    assert mirror(stage, str(stage.run), "--tracker", "trackio").returncode == 0
    assert len(notes(stage.calls)) == 68


@pytest.mark.parametrize(
    ("words", "code"), [((), 2), (("--tracker", "tensorboard"), 5), (("--tracker", "nothing"), 2)]
)
def test_bad_requests_are_told_in_one_line(words: tuple[str, ...], code: int, stage: Stage) -> None:
    done = mirror(stage, str(stage.run), *words)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
