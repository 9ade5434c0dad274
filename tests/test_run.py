"""The whole flow on a tiny recipe: what a record holds, and what makes it differ."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import bench.run as conductor
from bench.board.build import board_files
from bench.errors import (
    BenchError,
    Diverged,
    ProofFailed,
)
from bench.host.clock import CATEGORIES, Ledger
from bench.host.console import Console
from bench.host.provenance import Provenance
from bench.proving.proof import COMPILED
from bench.records.schema import encode
from bench.records.store import StoredRecord, read, read_all
from bench.run import run
from bench.spec.track import load_track, seed_value
from bench.spec.workspace import Workspace
from bench.training import build, loop
from bench.training.compile_ahead import Asked
from bench.training.run_folder import folder_path
from kernels.dispatch import bind
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder; the first run prepares its corpus."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, StoredRecord]:
    """A checkout with one finished run, which scored every third step."""
    space = tiny.checkout(tmp_path_factory.mktemp("first"), data, eval={"every_steps": 3})
    return space, tiny.run_here(space)


@pytest.fixture
def space(data: Path, tmp_path: Path) -> Workspace:
    """A checkout of the tiny recipe."""
    return tiny.checkout(tmp_path, data)


def test_a_run_writes_a_record_that_holds(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    record = stored.record
    assert tiny.problems(space, stored) == []
    assert stored.path.read_bytes() == encode(record)
    assert record.status == "ok"
    assert (record.shape.steps, len(record.curves.losses)) == (tiny.STEPS, tiny.STEPS)
    assert record.curves.losses[0] == pytest.approx(math.log(384), abs=0.05)
    assert record.curves.losses[-1] < record.curves.losses[0] - 0.05
    assert record.scores.final_train_loss == record.curves.losses[-1]
    assert record.scores.value == record.scores.val_bpb == record.curves.bpbs[-1]
    assert record.scores.min_val_bpb == min(record.curves.bpbs)
    assert record.curves.bpb_steps == [3, 6, 8]
    assert record.shape.tokens == tiny.STEPS * 512
    assert record.memory.peak_bytes > 10**7
    assert record.identity.seed == seed_value(load_track("tiny", space.tracks).track, 0)


def test_the_times_add_up(first: tuple[Workspace, StoredRecord]) -> None:
    timing = first[1].record.timing
    assert tuple(sorted(timing.ledger)) == tuple(sorted(CATEGORIES))
    assert sum(timing.ledger.values()) == pytest.approx(timing.wall_s, rel=5e-3)
    assert timing.official_s == timing.ledger["train"] + timing.ledger["data_wait"]
    assert timing.cold_s == pytest.approx(timing.official_s + timing.ledger["warmup"])
    assert (
        min(timing.ledger[name] for name in ("import", "data", "warmup", "train", "eval", "checkpoint")) > 0
    )
    assert timing.nanochat_rule_s == 0.0  # none of its steps is beyond the eleventh
    assert timing.step_median_s <= timing.step_p90_s
    assert timing.tokens_per_s_median == pytest.approx(512 / timing.step_median_s)
    assert timing.mfu is None


def test_the_data_is_named_by_hash(first: tuple[Workspace, StoredRecord]) -> None:
    used = first[1].record.data
    assert [name for name, _, _ in used.files] == [f"shard_{i:05d}.parquet" for i in range(3)]
    for sha256 in (
        used.corpus_sha256,
        used.tokenizer_sha256,
        used.validation_sha256,
        *(f[2] for f in used.files),
    ):
        assert len(sha256) == 64
    assert 0 < used.validation_bytes <= 4000
    assert 0 < used.train_tokens_unique < used.train_tokens_available
    assert 0 < used.epochs < 1


def test_the_events_lead_to_the_record(first: tuple[Workspace, StoredRecord]) -> None:
    record, events = first[1].record, tiny.events_of(first[1])
    three, score = ["step"] * 3, "eval_accuracy"
    keys = ["run_start", *three, score, *three, score, "step", "step", score, "run_stop"]
    assert [event.key for event in events if event.key != "state"] == keys
    noted = [event.value for event in events if event.key == "state"]
    assert [(each["step"], bool(each["kept_sha256"])) for each in noted] == [
        (0, False),
        (1, False),
        (2, True),
        (3, False),
        (5, True),
        (6, False),
    ]
    assert events[-1].hash == record.events_sha256_tip
    steps = [event.value for event in events if event.key == "step"]
    assert [loss for step in steps for loss in step["losses"]] == record.curves.losses
    assert [round(step["official_s"], 4) for step in steps] == record.curves.logged_seconds
    times = [event.time_s for event in events]
    assert times == sorted(times)


def test_the_next_run_takes_the_next_seed(first: tuple[Workspace, StoredRecord]) -> None:
    space, stored = first
    second = tiny.run_here(space)
    try:
        assert second.record.identity.seed_index == 1
        assert tiny.problems(space, second) == []
        assert second.record.curves.losses != stored.record.curves.losses
        assert second.record.data.train_tokens_unique != stored.record.data.train_tokens_unique
        assert second.record.scores.weights_sha256 != stored.record.scores.weights_sha256
        assert "2" in board_files(space)[space.board].decode()
    finally:
        second.path.unlink()


def test_the_same_seed_gives_the_same_bits(first: tuple[Workspace, StoredRecord], space: Workspace) -> None:
    """Whatever else is done meanwhile: no evaluations here, and rows of another split."""
    one, again = first[1].record, tiny.run_here(space).record
    assert again.curves.losses == one.curves.losses
    assert again.scores.weights_sha256 == one.scores.weights_sha256
    assert again.scores.val_bpb == one.scores.val_bpb
    tiny.write_recipe(space, batch={"device_sequences": 4})
    split = tiny.run_here(space, seed_index=0).record
    assert split.curves.losses == pytest.approx(one.curves.losses, abs=1e-5)
    assert split.scores.val_bpb == pytest.approx(one.scores.val_bpb, rel=1e-5)
    assert split.scores.val_bpb_bestfit == pytest.approx(one.scores.val_bpb_bestfit, rel=1e-5)


def test_deterministic_algorithms_give_a_cpus_bits(
    first: tuple[Workspace, StoredRecord], space: Workspace
) -> None:
    tiny.write_recipe(space, precision={"compute": "float32", "deterministic": True})
    record = tiny.run_here(space, seed_index=0).record
    assert record.machine.settings["deterministic"] == "True"
    assert record.curves.losses == first[1].record.curves.losses
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_record_is_written_as_it_is_read(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of nothing is a whole 0 in a field of fractions; it would be read, and hashed, as 0.0."""
    real = conductor.assemble

    def with_whole_numbers(measured: Any) -> Any:
        record = real(measured)
        timing = msgspec.structs.replace(record.timing, nanochat_rule_s=0)
        return msgspec.structs.replace(record, timing=timing)

    monkeypatch.setattr(conductor, "assemble", with_whole_numbers)
    stored = tiny.run_here(space)
    assert tiny.problems(space, stored) == []


def test_without_the_warm_up_the_losses_are_equal(
    first: tuple[Workspace, StoredRecord], space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "warm_up", lambda *arguments: None)
    assert tiny.run_here(space).record.curves.losses == first[1].record.curves.losses


@pytest.fixture
def changed_paths() -> Iterator[list[str]]:
    """Every path that this process creates, renames or removes meanwhile, and every connection."""
    seen: list[str] = []
    active = True
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if not active:
            return
        if name.startswith("socket.") and name != "socket.gethostname":
            seen.append(f"{name} {arguments}")
        elif name == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            seen.append(arguments[0])
        elif name in changes:
            seen.extend(str(path) for path in arguments if isinstance(path, str | os.PathLike))

    sys.addaudithook(hook)
    yield seen
    active = False


def test_nothing_is_written_elsewhere_and_no_one_is_called(
    space: Workspace, changed_paths: list[str]
) -> None:
    tiny.run_here(space)
    owned = (str(space.runs), str(space.records), str(space.data))
    assert changed_paths
    relative = {path for path in changed_paths if not path.startswith("/")}  # of a folder open by descriptor
    assert all("/" not in path for path in relative)
    foreign = [path for path in changed_paths if path not in relative and not path.startswith(owned)]
    assert [
        path for path in foreign if path not in ("/dev/null", str(space.runs.parent / "leaderboard"))
    ] == []


def test_training_waits_for_what_is_compiled_beside_it(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is asked for what the run will compile, and no step is timed beside it."""
    seen: list[object] = []

    @contextmanager
    def compiled_ahead(asked: Asked | None, environment: Mapping[str, str]) -> Iterator[Callable[[], object]]:
        seen.append(asked)
        yield lambda: seen.append("waited")
        seen.append("ended")

    step = loop._step
    monkeypatch.setattr(conductor, "compiled_ahead", compiled_ahead)
    monkeypatch.setattr(loop, "_step", lambda *given: (seen.append("step"), step(*given))[1])
    stored = tiny.run_here(space)
    asked = Asked(tiny.request(space).plan, tiny.facts().cpu_cores)
    assert seen == [asked, "waited", *["step"] * tiny.STEPS, "ended"]
    assert stored.record.status == "ok"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_what_is_compiled_is_proved_once_and_leaves_no_trace(
    tmp_path: Path, space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has the proof; a run that finds it kept trains to the same weights."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compile"))
    made, real = [], conductor.error_ratios
    monkeypatch.setattr(conductor, "error_ratios", lambda *given: (made.append(given), real(*given))[1])
    own = tmp_path / "data" / "proofs"  # without what other tests have proved of compiled code
    shutil.copytree(space.proofs, own, ignore=shutil.ignore_patterns("compiled-*"))
    spaces = [
        tiny.checkout(tmp_path / name, own.parent, compile={"enabled": True}) for name in ("made", "found")
    ]
    records = []
    for each in spaces:
        torch.compiler.reset()  # as in a process of its own
        records.append(tiny.run_here(each).record)
    first, second = records
    assert len(made) == 1
    assert first.compiled == second.compiled
    assert first.compiled is not None
    assert first.compiled.worst_error_ratios.keys() == set(COMPILED)
    assert first.dispatches == second.dispatches
    assert first.scores.weights_sha256 == second.scores.weights_sha256
    assert first.curves.losses == second.curves.losses


def test_a_run_whose_compiled_code_is_wrong_does_not_train(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that compiles nothing has nothing to prove of it."""
    assert tiny.run_here(space).record.compiled is None
    request = tiny.request(space, seed_index=1)
    compiled = msgspec.structs.replace(request, plan=msgspec.structs.replace(request.plan, compiled=True))
    monkeypatch.setattr(
        build, "_compiled", lambda model, mode: lambda tokens_BT: 0.9 * model(tokens_BT).roll(1)
    )
    monkeypatch.setattr(build, "bind", lambda choices, compiled: bind(choices, compiled=False))
    with tiny.torchs_settings_kept(), pytest.raises(ProofFailed, match="compiled, the") as error:
        run(compiled, Ledger.start(), tiny.quiet())
    assert error.value.exit_code == 4
    assert len(read_all(space.records)) == 1
    assert not list(folder_path(space.runs, "tiny", "tiny", 1).glob("step-*"))


def test_code_that_changes_while_it_runs_is_remarked(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record names the commit that was there when training began."""
    began = Provenance("a" * 40, "")
    monkeypatch.setattr("bench.host.circumstances.provenance", lambda _: began)
    states = iter(("0" * 64, "1" * 64))
    monkeypatch.setattr("bench.host.circumstances.sources_sha256", lambda _: next(states))
    record = tiny.run_here(space).record
    assert record.identity.git_commit == began.commit
    assert "the code was changed while it ran" in record.warnings


def test_the_console_says_what_happens(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), tiny.Clock()
    clock.slow(monkeypatch, loop, "_step", 0.5)
    tiny.write_recipe(space, eval={"every_steps": 4})
    tiny.run_by(clock, space, console=Console(stream=stream, every_s=0.0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "data: folder:tiny, 384-token vocabulary"
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == [
        f"step {i}/8" for i in range(1, 9)
    ]
    assert "  1,024 tok/s  " in lines[2]
    assert lines[-1] == "evaluating"


def test_errors_have_codes_that_scripts_can_read(space: Workspace) -> None:
    code, output = tiny.bench(space, *tiny.run_words("--json"))
    assert (code, output) == (0, "")
    told = json.loads((space.root / "out").read_text())
    assert read(Path(told["record"])).record.scores.val_bpb == told["scores"]["val_bpb"]
    assert issubclass(Diverged, BenchError)
