"""Several processes train what one does: over gloo, started as a person starts them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.errors import Interrupted, PlanRefused
from bench.records.replayed import load_replays, record_sha256
from bench.records.schema import Record
from bench.records.store import StoredRecord, read_all
from bench.spec.workspace import Workspace
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
STEPS = 40
LR = 0.02  # at ten times this rate a rounding grew to 2e-5 of the loss in ten steps
# Rows divide by 1, 2 and 3 ranks; AdamW's tables do too, or not; five ranks' worth of matrices do not.
BATCH = {"tokens": 768, "device_sequences": 4}
LAUNCH = ("launch", "submissions/tiny.toml", "--device", "cpu", "--seed", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


def checkout(root: Path, data: Path) -> Workspace:
    """A checkout with the code itself: each rank is a `python -m bench` of it."""
    for package in ("bench", "kernels", "model"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tiny.checkout(
        root, data, batch=BATCH, horizon={"iterations": STEPS}, optimizer={"muon": {"lr": LR}}
    )


def devices(space: Workspace, count: int) -> None:
    """Let the track be for so many processes."""
    hardware = {**tiny.TRACK["hardware"], "device_count": count}
    tiny.write_toml(space.tracks / "tiny.toml", {**tiny.TRACK, "hardware": hardware})


def start(space: Workspace, *words: str) -> subprocess.Popen[str]:
    """`bench WORDS` in the checkout, each process with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--data", str(space.data)],
        cwd=space.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, errors = process.communicate(timeout=900)
    return process.returncode, errors


def trained(root: Path, data: Path, count: int) -> StoredRecord:
    """The run of so many processes."""
    space = checkout(root, data)
    devices(space, count)
    code, errors = ended(start(space, *LAUNCH))
    assert code == 0, errors
    [stored] = read_all(space.records)
    assert tiny.problems(space, stored) == []
    assert errors.count("evaluating") == 1, "more than one rank speaks"
    return stored


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Record:
    """What one process records."""
    return trained(tmp_path_factory.mktemp("one") / "site", data, 1).record


def same_curve(ours: Record, theirs: Record) -> None:
    """Two runs came to the same, but for the order of sums."""
    assert ours.features.keys() == theirs.features.keys()
    assert ours.curves.losses == pytest.approx(theirs.curves.losses, rel=1e-5)
    # Of the weights after the last step, whose roundings no loss has seen: 1.3e-5 off (AVX2, 3 ranks).
    assert ours.scores.val_bpb == pytest.approx(theirs.scores.val_bpb, rel=3e-5)
    assert ours.scores.val_bpb_bestfit == pytest.approx(theirs.scores.val_bpb_bestfit, rel=3e-5)
    for counter in ours.features.keys() - {"backout"}:  # a scalar before a norm: its gradient is rounding
        assert ours.features[counter] == pytest.approx(theirs.features[counter], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_train_what_one_process_does(tmp_path: Path, data: Path, alone: Record, count: int) -> None:
    stored = trained(tmp_path / "site", data, count)
    shared = stored.record
    same_curve(shared, alone)
    assert shared.shape.world_size == count
    assert shared.shape.accumulation == alone.shape.accumulation // count
    assert shared.identity.plan_sha256 == alone.identity.plan_sha256
    assert shared.data == alone.data
    is_replayed_by_as_many(tmp_path / "site", data, stored)


def is_replayed_by_as_many(root: Path, data: Path, stored: StoredRecord) -> None:
    """`bench replay` starts the ranks of the record's track, and comes to the same bits."""
    space = Workspace(root=root, data=data)
    code, errors = ended(start(space, "replay", str(stored.path), "--device", "cpu", "--segments", "2"))
    assert code == 0, errors
    [found] = load_replays(space.replays).values()
    assert found.passed
    assert "the same bits" in found.says
    assert found.record == record_sha256(stored.record)


@pytest.mark.slow
def test_a_killed_rank_stops_all_and_another_number_of_them_goes_on(
    tmp_path: Path, data: Path, alone: Record
) -> None:
    space = checkout(tmp_path / "site", data)
    devices(space, 2)
    process = start(space, *LAUNCH)
    folder = space.runs / "tiny" / "tiny" / "0"
    wait_for(lambda: any(folder.glob("step-*")))
    [victim] = [one for one in psutil.Process(process.pid).children() if one.environ()["RANK"] == "1"]
    victim.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    code, errors = ended(process)
    assert time.monotonic() - killed_s < 30.0
    assert code == Interrupted.exit_code == 9, errors
    assert "rank 1 was killed by SIGKILL" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert read_all(space.records) == []
    for count in (3, 1):  # three go on where two were, and one where three were stopped
        devices(space, count)
        process = start(space, *LAUNCH, "--resume")
        if count == 3:
            newest = max(folder.glob("step-*"))
            wait_for(lambda newest=newest: max(folder.glob("step-*")) > newest)
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == Interrupted.exit_code
    code, errors = ended(process)
    assert code == 0, errors
    [stored] = read_all(space.records)
    same_curve(stored.record, alone)


@pytest.mark.slow
def test_two_machines_meet(tmp_path: Path, data: Path, alone: Record) -> None:
    space = checkout(tmp_path / "site", data)
    devices(space, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    place = ("--nodes", "2", "--rendezvous", where)
    other = start(space, *LAUNCH, *place, "--node-rank", "1")
    code, errors = ended(start(space, *LAUNCH, *place, "--node-rank", "0"))
    assert code == 0, errors
    assert ended(other)[0] == 0
    [stored] = read_all(space.records)
    same_curve(stored.record, alone)
    assert stored.record.machine.settings["nodes"] == "2"
    assert "several machines" in stored.record.energy.reason


def test_a_track_of_several_devices_is_not_run_on_one(tmp_path: Path, data: Path) -> None:
    space = checkout(tmp_path / "site", data)
    devices(space, 2)
    code, errors = ended(start(space, "run", *LAUNCH[1:]))
    assert code == PlanRefused.exit_code == 3
    assert "2 device(s), 1 process(es)" in errors
    assert "bench launch" in errors
    assert read_all(space.records) == []


def wait_for(condition: Any) -> None:
    """Until a condition holds, for two minutes at the most."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing came of it in two minutes")
