"""Replays: an honest run is found honest to the bit, and whatever differs from its log is found."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.commands.device import _replayed
from bench.errors import DataError, PlanRefused, VerificationFailed
from bench.host.planning import plan_submission
from bench.records.replayed import Replay, load_replays, record_sha256, write_replay
from bench.records.store import StoredRecord
from bench.records.trace import State, Step
from bench.replay import MARGIN, Rerun, equivalence_bound, open_rerun, replay
from bench.spec.workspace import Workspace
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, StoredRecord]:
    """A checkout with one run, its folder included."""
    space = tiny.checkout(tmp_path_factory.mktemp("ran"), data)
    return space, tiny.run_here(space)


@pytest.fixture
def rerun(ran: tuple[Workspace, StoredRecord]) -> Iterator[Rerun]:
    """What executes the run's segments again."""
    with tiny.torchs_settings_kept():
        yield open_rerun(ran[1], planned(ran[0]), ran[0], {})


def planned(space: Workspace):  # type: ignore[no-untyped-def]
    """The tiny recipe, planned here."""
    asked = tiny.request(space)
    return plan_submission(asked.submission, asked.track, asked.facts, space, {})


def outcome(ran: tuple[Workspace, StoredRecord], rerun: Rerun, count: int = 3) -> Replay:
    """A replay of as many segments."""
    return replay(ran[1], rerun, "nonce", count, "here", lambda line: None)


def test_an_honest_run_is_replayed_to_the_bit(ran: tuple[Workspace, StoredRecord], rerun: Rerun) -> None:
    found = outcome(ran, rerun)
    assert found.passed
    assert [(each.start, each.stop) for each in found.segments] == [(0, 1), (2, 3), (5, 6)]
    assert all(
        each.compared == "bitwise" and each.worst_difference == 0.0 and not each.problems
        for each in found.segments
    )
    assert found.record == record_sha256(ran[1].record)
    assert "3 segments, 3 steps (37.5% of the run): the same bits" in found.says


@pytest.mark.parametrize(
    ("altered", "problem"),
    [
        (lambda step: step._replace(loss=step.loss * (1 + 2**-20)), "loss"),
        (lambda step: step._replace(learning_rate=step.learning_rate + 2**-30), "learning rate"),
        (lambda step: step._replace(sequences=step.sequences + 1), "sequences"),
    ],
)
def test_a_step_of_the_log_that_was_altered_is_found(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun, altered: Callable[[Step], Step], problem: str
) -> None:
    rerun.trace.steps[6] = altered(rerun.trace.steps[6])
    found = outcome(ran, rerun)
    assert not found.passed
    assert [len(each.problems) for each in found.segments] == [0, 0, 1]
    assert found.segments[2].problems[0].startswith(f"step 6: {problem} ")
    assert problem in found.says


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_weights_that_were_altered_are_found(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun, step: int
) -> None:
    noted = rerun.trace.states[step]
    rerun.trace.states[step] = State("0" * 64, noted.kept_sha256)
    found = outcome(ran, rerun)
    assert not found.passed
    assert f"the weights at step {step} are not those that were logged" in found.says


def test_other_data_is_found(ran: tuple[Workspace, StoredRecord], rerun: Rerun) -> None:
    """A run that read its text from another place than it says: its seed gives the order."""
    found = outcome(ran, rerun._replace(seed=rerun.seed + 1))
    assert not found.passed
    assert all(each.problems for each in found.segments)


def test_a_total_that_was_altered_shows_in_the_rate(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun
) -> None:
    for step in (1, 3, 6):
        rerun.trace.steps[step] = rerun.trace.steps[step]._replace(total=7)
    found = outcome(ran, rerun)
    assert not found.passed


@pytest.mark.parametrize("damage", ["gone", "altered"])
def test_a_kept_state_that_is_not_the_runs_is_refused(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun, tmp_path: Path, damage: str
) -> None:
    kept = tmp_path / "replay"
    shutil.copytree(rerun.kept, kept)
    tensors = kept / "step-00000002" / "tensors.safetensors"
    if damage == "gone":
        tensors.unlink()
    else:
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    with pytest.raises(DataError, match="step-00000002 is missing or not the state that the log names"):
        outcome(ran, rerun._replace(kept=kept))


def test_another_plan_is_no_replay(ran: tuple[Workspace, StoredRecord], data: Path, tmp_path: Path) -> None:
    other = tiny.checkout(tmp_path, data, optimizer={"muon": {"lr": 0.1}})
    with pytest.raises(PlanRefused, match="plan another run"):
        open_rerun(ran[1], planned(other), ran[0], {})


def test_the_command_writes_what_it_found(ran: tuple[Workspace, StoredRecord]) -> None:
    space, stored = ran
    code, output = tiny.bench(space, "replay", str(stored.path), "--nonce", "x", "--data", str(space.data))
    assert code == 0, output
    assert "replay passed: 3 segments" in (space.root / "out").read_text()
    (found,) = load_replays(space.replays).values()
    assert found.passed
    assert found.nonce == "x"


def test_other_code_indicts_no_record(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that differs is written only where the code is the record's."""
    space, stored = ran
    failed = msgspec.structs.replace(outcome(ran, rerun, count=1), passed=False, says="the loss differs")
    options = argparse.Namespace(root=space.root, data=space.data, json=False)
    before = load_replays(space.replays)
    monkeypatch.setattr("bench.host.provenance.is_code_of", lambda _root, _recorded: False)
    with pytest.raises(PlanRefused, match="the loss differs; but the code is not the record's") as error:
        _replayed(options, stored, failed, tiny.facts())
    assert stored.record.identity.git_commit[:12] in error.value.hint
    assert load_replays(space.replays) == before
    monkeypatch.undo()
    assert _replayed(options, stored, failed, tiny.facts()) == VerificationFailed.exit_code
    assert load_replays(space.replays) != before


@pytest.mark.parametrize(
    "change",
    [{"cpu_model": "Another"}, {"features": ("sse9",)}, {"cpu_cores": 7}, {"versions": {"torch": "3.0"}}],
)
def test_another_machine_indicts_no_record(
    ran: tuple[Workspace, StoredRecord], rerun: Rerun, change: dict[str, object]
) -> None:
    """A replay elsewhere can pass, and says nothing if it differs: bits are the processor's, too."""
    space, stored = ran
    here = msgspec.structs.replace(tiny.facts(), **change)
    passed = outcome(ran, rerun, count=1)
    failed = msgspec.structs.replace(passed, passed=False, says="the loss differs")
    options = argparse.Namespace(root=space.root, data=space.data, json=False)
    assert _replayed(options, stored, passed, here) == 0
    before = load_replays(space.replays)
    with pytest.raises(PlanRefused, match="this machine need not give the same bits"):
        _replayed(options, stored, failed, here)
    assert load_replays(space.replays) == before


def test_outcomes_are_read_as_written(
    tmp_path: Path, ran: tuple[Workspace, StoredRecord], rerun: Rerun
) -> None:
    found = outcome(ran, rerun, count=1)
    path = write_replay(tmp_path / "replays", found)
    assert load_replays(tmp_path / "replays") == {found.record: found}
    assert json.loads(path.read_text())["passed"] is True


@given(st.integers(3, 60), st.floats(1e-6, 1e-3), st.integers(0, 2**31))
def test_equal_training_is_equivalent_and_another_is_not(m: int, deviation: float, seed: int) -> None:
    generator = random.Random(seed)
    noise = [generator.gauss(0.0, deviation) for _ in range(m)]
    bound = equivalence_bound(noise)
    assert abs(sum(noise) / m) <= bound <= 100 * deviation
    assert equivalence_bound([MARGIN + each for each in noise]) >= min(MARGIN, MARGIN + sum(noise) / m)


def test_two_steps_prove_no_equivalence() -> None:
    assert equivalence_bound([0.0, 0.0]) == float("inf")
    assert equivalence_bound([0.0, 0.0, 0.0]) == 0.0
