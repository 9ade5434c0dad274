"""A run stopped at any moment and resumed ends with the losses and weights of one that was never stopped."""

from __future__ import annotations

import hashlib
import shutil
import signal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from bench.errors import DataError, VerificationFailed
from bench.records.store import StoredRecord, read_all
from bench.records.verify import verify
from bench.spec.track import load_track
from bench.spec.workspace import Workspace
from bench.training import checkpoint, loop
from tests import tiny
from tests.faults import full_disk_at_save, kill_at_call, kill_at_change, signal_at_step

TRACK_FOLDER = Path(".runs") / "tiny" / "tiny" / "0"


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredRecord:
    """The uninterrupted run."""
    return tiny.run_here(tiny.checkout(tmp_path_factory.mktemp("whole"), data))


@pytest.fixture
def space(whole: StoredRecord, data: Path, tmp_path: Path) -> Workspace:
    """A checkout whose corpus is prepared."""
    return tiny.checkout(tmp_path, data)


def interrupt(space: Workspace, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """A run stopped by Ctrl-C in this step, in this process; its run folder."""
    with monkeypatch.context() as patch:
        stop_before(patch, step)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_here(space)
    return space.root / TRACK_FOLDER


def stop_before(patch: pytest.MonkeyPatch, num_steps: int) -> None:
    """Ctrl-C at the start of the process's `num_steps`-th step."""
    real, calls = loop._step, count(1)

    def stopping(*arguments: Any) -> torch.Tensor:
        if next(calls) == num_steps:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(loop, "_step", stopping)


def assert_same(resumed: StoredRecord, whole: StoredRecord, space: Workspace) -> None:
    """Equal in everything that the interruption must not have changed, and valid."""
    one, other = resumed.record, whole.record
    assert one.curves.losses == other.curves.losses
    assert one.curves.bpbs == other.curves.bpbs
    assert one.curves.logged_steps == other.curves.logged_steps
    assert one.scores.weights_sha256 == other.scores.weights_sha256
    assert one.scores.val_bpb == other.scores.val_bpb
    assert one.data == other.data
    assert list(one.curves.logged_seconds) == sorted(one.curves.logged_seconds)
    assert verify(resumed, load_track("tiny", space.tracks)) == []


def resume(space: Workspace, whole: StoredRecord) -> StoredRecord:
    """Resume here; the record is checked against the uninterrupted one's."""
    resumed = tiny.run_here(space, resume=True)
    assert_same(resumed, whole, space)
    assert [stored.path for stored in read_all(space.records)] == [resumed.path]
    return resumed


def test_killed_in_a_step(space: Workspace, whole: StoredRecord) -> None:
    code, _ = tiny.bench(space, *tiny.run_words(), before=partial(signal_at_step, signal.SIGKILL, 6))
    assert code == -signal.SIGKILL
    assert [path.name for path in checkpoint.checkpoints(space.root / TRACK_FOLDER)] == [
        "step-00000002",
        "step-00000004",
    ]
    resumed = resume(space, whole).record
    assert resumed.timing.num_resumes == 1
    assert any("resumed 1 time" in warning for warning in resumed.warnings)
    assert resumed.energy.joules is None
    assert "resumed" in resumed.energy.reason


@pytest.mark.parametrize(
    ("event", "number"),
    [
        ("os.rename", 3),  # the second checkpoint (a state kept for replays came first) has no name yet
        pytest.param("os.rmdir", 1, marks=pytest.mark.slow),  # an old checkpoint is half removed
        pytest.param(
            "os.link", 1, marks=pytest.mark.slow
        ),  # the record's events are written and have no name yet
        ("os.link", 2),  # the events lie there, the record does not
    ],
)
def test_killed_between_two_changes_on_disk(
    space: Workspace, whole: StoredRecord, event: str, number: int
) -> None:
    code, _ = tiny.bench(space, *tiny.run_words(), before=partial(kill_at_call, event, number))
    assert code == -signal.SIGKILL
    assert read_all(space.records) == []
    resume(space, whole)


@pytest.mark.slow
def test_killed_at_every_change_on_disk(whole: StoredRecord, data: Path, tmp_path: Path) -> None:
    for number in count(1, 5):
        space = tiny.checkout(tmp_path / str(number), data)
        fault = partial(kill_at_change, str(space.root), number)
        code, _ = tiny.bench(space, *tiny.run_words(), before=fault)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if not read_all(space.records):
            resume(space, whole)
        shutil.rmtree(space.root)
    assert number > 30


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, tiny.STEPS + 1))
def test_killed_in_every_step(space: Workspace, whole: StoredRecord, step: int) -> None:
    code, _ = tiny.bench(space, *tiny.run_words(), before=partial(signal_at_step, signal.SIGKILL, step))
    assert code == -signal.SIGKILL
    resume(space, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interruption(space: Workspace, number: signal.Signals) -> None:
    code, output = tiny.bench(space, *tiny.run_words(), before=partial(signal_at_step, number, 3))
    assert code == 9
    assert "error: interrupted\nhint: the same command with --resume" in output
    assert "Traceback" not in output
    assert len(checkpoint.checkpoints(space.root / TRACK_FOLDER)) == 1


def test_a_full_disk_leaves_the_older_checkpoint(space: Workspace, whole: StoredRecord) -> None:
    code, output = tiny.bench(space, *tiny.run_words(), before=partial(full_disk_at_save, 3, 100_000))
    assert code == 5
    assert "no room for" in output
    folder = space.root / TRACK_FOLDER
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-00000002"]
    assert not (folder / ".building").exists()
    resume(space, whole)


def test_interrupted_twice(space: Workspace, whole: StoredRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(space, monkeypatch, 5)
    with monkeypatch.context() as patch:
        stop_before(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_here(space, resume=True)
    assert resume(space, whole).record.timing.num_resumes == 2


@pytest.mark.parametrize("damage", ["tensors cut", "state cut", "tensors altered", "tensors gone"])
def test_a_damaged_checkpoint_is_passed_over(
    space: Workspace, whole: StoredRecord, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    newest = checkpoint.checkpoints(interrupt(space, monkeypatch, 6))[-1]
    assert newest.name == "step-00000004"
    path = newest / ("state.json" if damage.startswith("state") else "tensors.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "tensors altered":
        content[-1] ^= 1
    path.write_bytes(content if damage == "tensors altered" else content[: len(content) // 2])
    if damage == "tensors gone":
        path.unlink()
    identity = whole.record.identity
    data = whole.record.data
    text = hashlib.sha256(f"{data.corpus_sha256}/{data.tokenizer_sha256}".encode()).hexdigest()
    found = checkpoint.newest_whole(newest.parent, identity.plan_sha256, identity.seed, text)
    assert found is not None
    assert found[0].step == 2
    resume(space, whole)


def test_all_checkpoints_damaged_starts_anew(
    space: Workspace, whole: StoredRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in checkpoint.checkpoints(interrupt(space, monkeypatch, 6)):
        (path / "state.json").write_bytes(b"")
    assert resume(space, whole).record.timing.num_resumes == 0


def test_a_checkpoint_of_another_recipe_or_seed_is_refused(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupt(space, monkeypatch, 4)
    shutil.copytree(folder, folder.with_name("1"))
    with pytest.raises(DataError, match="another plan or seed"):
        tiny.run_here(space, seed_index=1, resume=True)
    tiny.write_recipe(space, schedule={"final_lr_fraction": 0.5})
    with pytest.raises(DataError, match="another plan or seed"):
        tiny.run_here(space, resume=True)


def test_another_machine_or_other_code_does_not_go_on(
    space: Workspace, whole: StoredRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record names one machine and one commit, and half of its steps would be another's."""
    interrupt(space, monkeypatch, 4)
    with monkeypatch.context() as patch:
        other = msgspec.structs.replace(tiny.facts(), cpu_model="Other CPU")
        patch.setattr(tiny, "facts", lambda: other)
        with pytest.raises(DataError, match=r"the checkpoint of step 2 was begun .*processor Other CPU, not"):
            tiny.run_here(space, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("bench.host.circumstances.sources_sha256", lambda _: "0" * 64)
        with pytest.raises(DataError, match="other code"):
            tiny.run_here(space, resume=True)
    resume(space, whole)


def test_a_checkpoint_that_does_not_say_where_it_was_made_is_refused(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.checkpoints(interrupt(space, monkeypatch, 4))[-1] / "state.json"
    told = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(told | {"circumstances": None}))
    with pytest.raises(DataError, match="does not say where and with what code it was made"):
        tiny.run_here(space, resume=True)


def test_a_log_that_does_not_lead_to_the_checkpoint_is_refused(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = interrupt(space, monkeypatch, 4) / "events.jsonl"
    text = log.read_text()
    log.write_text(text.replace('"losses":[5', '"losses":[4', 1))
    assert log.read_text() != text
    with pytest.raises(VerificationFailed, match="hash chain"):
        tiny.run_here(space, resume=True)


def test_starting_anew_forgets_the_old_checkpoints(
    space: Workspace, whole: StoredRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(space, monkeypatch, 6)
    folder = interrupt(space, monkeypatch, 2)  # without --resume, and stopped before its first checkpoint
    assert checkpoint.checkpoints(folder) == []
    resume(space, whole)


def test_more_logging_or_less_saves_the_same_state(
    whole: StoredRecord, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that were not yet read back when the checkpoint was due are part of it."""
    space = tiny.checkout(tmp_path, data, log={"every_steps": 5}, checkpoint={"every_steps": 3})
    interrupt(space, monkeypatch, 5)
    resumed = tiny.run_here(space, resume=True).record
    assert resumed.curves.losses == whole.record.curves.losses
    assert resumed.curves.logged_steps == [1, 2, 3, 5, 6, 8]  # 1, 2: where a replay may start or stop
    assert resumed.scores.weights_sha256 == whole.record.scores.weights_sha256
