"""A checkout in miniature: a real track, recipe and corpus that train, score and record in a second."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from bench import cli
from bench.host import machine
from bench.host.clock import Ledger
from bench.host.console import Console
from bench.host.facts import MachineFacts
from bench.host.machine import detect
from bench.host.planning import Rates, plan_machine
from bench.records.events import Event, read_events
from bench.records.store import StoredRecord, next_seed_index, read
from bench.records.verify import verify
from bench.run import RunRequest, run
from bench.spec.plan import make_plan
from bench.spec.submission import load
from bench.spec.toml import merge
from bench.spec.track import load_track
from bench.spec.workspace import Workspace
from tests.data.shards import write_folder

STEPS = 8
TRACK: dict[str, Any] = {
    "title": "Tiny",
    "says": "It runs.",
    "says_not": "More.",
    "size": 1,
    "score": {"metric": "val_bpb"},
    "hardware": {"machine_class": "cpu", "device_kind": "cpu"},
    "seeds": {"count": 2, "nonce": "tiny"},
}
RECIPE: dict[str, Any] = {
    "title": "Tiny",
    "track": "tiny",
    "model": {
        "depth": 2,
        "aspect_ratio": 32,
        "head_dim": 32,
        "sequence_length": 32,
        "vocab_size": 384,
        "window_pattern": "SL",
        "short_window_multiple": 8,
    },
    "optimizer": {"muon": {"lr": 0.2, "momentum_warmup_steps": 4}},
    "schedule": {"warmup_steps": 2},
    "horizon": {"iterations": STEPS},
    "batch": {"tokens": 512, "device_sequences": 8},
    "precision": {"compute": "float32"},
    "compile": {"enabled": False},
    "data": {"dataset": "folder:tiny", "tokenizer_chars": 1_000_000},
    "eval": {"validation_bytes": 4000},
    "checkpoint": {"every_steps": 2},
}
NAME = "tiny"


def checkout(root: Path, data: Path | None = None, **changes: Any) -> Workspace:
    """A checkout at `root` of one track and one recipe; its corpus is made where it is not there yet."""
    space = Workspace(root=root, data=data or root / ".data")
    write_toml(space.tracks / f"{NAME}.toml", TRACK)
    write_recipe(space, **changes)
    if not (space.data / "tiny").exists():
        write_folder(space.data)
    if not space.proofs.exists():
        space.proofs.symlink_to(os.environ["SPEEDRUN_TEST_PROOFS"])
    return space


def write_recipe(space: Workspace, **changes: Any) -> Path:
    """The tiny recipe, with these tables' fields changed."""
    path = space.submissions / f"{NAME}.toml"
    write_toml(path, merge(RECIPE, changes, frozenset({"horizon"})))
    return path


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """TOML of nested tables; a JSON scalar is a TOML scalar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_lines(tables, "")))


def _lines(table: Mapping[str, Any], name: str) -> list[str]:
    lines = [f"[{name}]\n"] if name else []
    lines += [f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{name}.{key}" if name else key)
    return lines


@cache
def facts() -> MachineFacts:
    """This machine as a CPU of one core: a second thread, on shared cores, mostly waits."""
    return msgspec.structs.replace(detect("cpu", environment={}), cpu_cores=1)


def request(space: Workspace, *, seed_index: int | None = None, resume: bool = False) -> RunRequest:
    """What `bench run submissions/tiny.toml` asks for, planned on a machine of a declared speed."""
    submission = load(space.submissions / f"{NAME}.toml")
    track = load_track(NAME, space.tracks)
    recipe = submission.recipe
    rates = Rates({f"{facts().device_name}/{recipe.precision.compute}/d{recipe.model.depth}": 1e9})
    here = plan_machine(facts(), track, recipe.precision.compute, recipe.model.depth, rates)
    return RunRequest(
        submission=submission,
        track=track,
        plan=make_plan(submission, track, here),
        facts=facts(),
        workspace=space,
        seed_index=next_seed_index(space.records, NAME, NAME) if seed_index is None else seed_index,
        resume=resume,
        environment={},
        image_digest="",
        notes=[],
    )


def run_here(space: Workspace, *, seed_index: int | None = None, resume: bool = False) -> StoredRecord:
    """One run in this process."""
    with torchs_settings_kept():
        path = run(request(space, seed_index=seed_index, resume=resume), Ledger.start(), quiet())
    return read(path)


@contextmanager
def torchs_settings_kept() -> Iterator[None]:
    """What `configure` sets for the process is afterwards as it was."""
    threads, flush = torch.get_num_threads(), torch.tensor(1e-40).mul(1.0).item() == 0.0
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush)


def problems(space: Workspace, stored: StoredRecord) -> list[str]:
    """What `bench verify` says."""
    return verify(stored, load_track("tiny", space.tracks))


def events_of(stored: StoredRecord) -> list[Event]:
    """The events beside a record, their chain checked."""
    return list(read_events(stored.events_path.read_bytes(), "events"))


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def slow(self, patch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> None:
        """Let each call of this function take so long."""
        real = getattr(owner, name)

        def slowed(*arguments: Any, **options: Any) -> Any:
            self.now_s += seconds
            return real(*arguments, **options)

        patch.setattr(owner, name, slowed)


def run_by(clock: Clock, space: Workspace, console: Console | None = None, **options: Any) -> StoredRecord:
    """A run whose only time is the clock's."""
    threads = torch.get_num_threads()
    try:
        return read(run(request(space, **options), Ledger(clock=clock), console or quiet()))
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def quiet() -> Console:
    """A console that says nothing."""
    return Console(stream=io.StringIO(), quiet=True)


def spawn(space: Workspace, *words: str, before: Callable[[], None] | None = None) -> ForkServerProcess:
    """`bench WORDS` of this checkout in a process of its own that has torch already.

    `before` runs in it first; its output goes to `root/out` and `root/err`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny"])
    process = context.Process(target=_command, args=(space, words, before))
    process.start()
    return process


def bench(space: Workspace, *words: str, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit code (negative: the signal) and standard error of `bench WORDS`."""
    process = spawn(space, *words, before=before)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, (space.root / "err").read_text()


def _command(space: Workspace, words: tuple[str, ...], before: Callable[[], None] | None) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(space.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    cli.ROOT = space.root
    os.chdir(space.root)
    machine.usable_cores = lambda limits: 1
    if before is not None:
        before()
    sys.exit(cli.main([*words, "--data", str(space.data)]))


def run_words(*more: str) -> tuple[str, ...]:
    """The words of a run of the tiny recipe on the CPU."""
    return ("run", "submissions/tiny.toml", "--device", "cpu", *more)
