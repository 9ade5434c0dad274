"""Runs side by side: how many, where, what becomes of one that dies, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cli
from bench.errors import PlanRefused, RecipeError
from bench.experiments.jobs import (
    DIED,
    Jobs,
    Running,
    carry_out,
    places_of,
    require_room,
    slurm_parameters,
    starter,
    time_decides,
)
from bench.experiments.runner import FINAL, Place, SeedRun
from bench.experiments.seeds import Ended, worst_code
from bench.records.store import read_all
from bench.spec.recipe import Horizon
from bench.spec.track import load_track
from bench.spec.workspace import Workspace
from tests.records.sample import ROOT

TRACKS = ROOT / "leaderboard" / "tracks"


def runs(count: int) -> list[SeedRun]:
    return [SeedRun(Path("r.toml"), "cpu-quick", seed) for seed in range(count)]


class Machine:
    """Runs that each end after so many looks, with these codes, one a start."""

    def __init__(self, codes: dict[int, list[int]], looks: dict[int, int] | None = None) -> None:
        self.codes, self.looks = {seed: list(some) for seed, some in codes.items()}, looks or {}
        self.under_way: dict[int, int] = {}
        self.most, self.started, self.cancelled = 0, [], []

    def start(self, run: SeedRun) -> Running:
        seed = run.seed_index
        self.started.append(seed)
        self.under_way[seed] = self.looks.get(seed, 0)
        self.most = max(self.most, len(self.under_way))

        def poll() -> int | None:
            if self.under_way[seed]:
                self.under_way[seed] -= 1
                return None
            del self.under_way[seed]
            return self.codes[seed].pop(0)

        return Running(poll, lambda: self.cancelled.append(seed))


def carried_out(machine: Machine, asked: Iterator[SeedRun], num_at_once: int) -> list[tuple[int, int]]:
    def is_final(run: SeedRun, code: int) -> bool:
        return code in FINAL

    ended = carry_out(asked, machine.start, num_at_once, is_final, lambda line: None)
    return [(run.seed_index, code) for run, code in ended]


@given(
    codes=st.lists(st.lists(st.sampled_from([0, 1, 7, DIED]), min_size=2, max_size=2), max_size=8),
    num_at_once=st.integers(1, 9),
)
def test_each_run_ends_once_and_a_failed_one_is_tried_twice(codes: list[list[int]], num_at_once: int) -> None:
    machine = Machine(dict(enumerate(codes)))
    ended = carried_out(machine, iter(runs(len(codes))), num_at_once)
    expected = {seed: one[0] if one[0] in FINAL else one[1] for seed, one in enumerate(codes)}
    assert dict(ended) == expected
    assert len(ended) == len(codes)
    assert machine.most <= num_at_once
    assert all(machine.started.count(seed) == (1 if one[0] in FINAL else 2) for seed, one in enumerate(codes))


def test_the_next_run_is_drawn_when_there_is_room_for_it() -> None:
    machine = Machine({seed: [0] for seed in range(4)}, looks={0: 2, 1: 1})
    drawn_beside = []

    def asked() -> Iterator[SeedRun]:
        for run in runs(4):
            drawn_beside.append(set(machine.under_way))
            yield run

    assert [seed for seed, _ in carried_out(machine, asked(), 2)] == [1, 0, 2, 3]
    assert drawn_beside == [set(), {0}, {0}, set()]


def test_what_ends_it_early_cancels_what_is_under_way() -> None:
    machine = Machine({0: [0], 1: [0], 2: [0]}, looks={1: 99, 2: 99})
    ended = carry_out(iter(runs(3)), machine.start, 3, lambda run, code: True, lambda line: None)
    assert next(ended)[0].seed_index == 0
    ended.close()
    assert machine.cancelled == [1, 2]


def test_runs_whose_time_counts_do_not_share_a_machine() -> None:
    quick, gpt2 = (load_track(name, TRACKS) for name in ("cpu-quick", "gpt2-8xh100"))
    assert time_decides(gpt2.track, []) == "the track ranks by time"
    assert "seconds" in time_decides(quick.track, [Horizon(seconds=60.0, param_data_ratio=None)])
    assert time_decides(quick.track, [Horizon(iterations=64, param_data_ratio=None)]) == ""
    for jobs in (Jobs(), Jobs("slurm", 8), Jobs("local", 2, devices=[[0], [1]])):
        require_room(jobs, gpt2, "the track ranks by time")
    require_room(Jobs("local", 2), quick, "")
    with pytest.raises(PlanRefused, match=r"--jobs 2 on gpt2-8xh100: the track ranks by time; .* all on one"):
        require_room(Jobs("local", 2), gpt2, "the track ranks by time")
    with pytest.raises(PlanRefused, match="there are devices for 2") as caught:
        require_room(Jobs("local", 3, devices=[[0], [1]]), gpt2, "the track ranks by time")
    assert caught.value.hint.startswith("use --jobs 2")


@given(num=st.integers(1, 16), each=st.integers(1, 8))
def test_devices_are_dealt_out_whole(num: int, each: int) -> None:
    places = places_of(None, num, each)
    dealt = [device for place in places for device in place]
    assert len(set(dealt)) == len(dealt) <= num
    assert len(places) == max(num // each, 1)
    assert places_of(",".join(str(i + 3) for i in range(num)), num, each)[0][0] == 3


def test_devices_without_a_number_are_refused() -> None:
    with pytest.raises(RecipeError, match="devices by number"):
        places_of("GPU-5e1f,GPU-77aa", 2, 1)


def test_parameters_of_slurm() -> None:
    found = slurm_parameters(["partition=gpu", "gpus_per_node=8", "exclusive=true", "time=1:00:00"])
    assert found == {"partition": "gpu", "gpus_per_node": 8, "exclusive": True, "time": "1:00:00"}
    for word in ("partition", "=gpu", "a b=1", "mem="):
        with pytest.raises(RecipeError, match="--slurm"):
            slurm_parameters([word])


def test_the_code_of_a_series() -> None:
    assert worst_code([]) == 0
    assert worst_code([Ended(0, 0, None), Ended(1, 7, None)]) == 7
    assert worst_code([Ended(0, 7, None), Ended(1, 5, None)]) == 5
    assert worst_code([Ended(0, 7, None), Ended(1, DIED, None)]) == 9


def test_options_that_say_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no srun, wherever this runs
    for words, code, said in (
        (["run", "submissions/quick.toml", "--jobs", "2"], 2, "spread several runs"),
        (["run", "submissions/quick.toml", "--seeds", "99", "--slurm", "a=b"], 2, "--executor slurm"),
        (["run", "submissions/quick.toml", "--seeds", "99", "--executor", "slurm"], 3, "srun"),
        (
            ["run", "submissions/run6.toml", "--track", "gpt2-8xh100", "--seeds=9", "--jobs=2"],
            3,
            "time",
        ),
    ):
        assert cli.main([*words, "--device", "cpu"]) == code
        assert said in capsys.readouterr().err


def test_a_job_is_a_process_of_bench_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    space = Workspace(root=ROOT, data=tmp_path / "data")
    start = starter(Jobs("local", 2), Place(space, "cpu", None), tmp_path / "jobs")
    asked = [
        SeedRun(tmp_path / "nope.toml", "cpu-quick", seed, log=tmp_path / f"{seed}.log") for seed in (0, 1)
    ]
    ended = list(carry_out(iter(asked), start, 2, lambda run, code: True, lambda line: None))
    assert sorted((run.seed_index, code) for run, code in ended) == [(0, 2), (1, 2)]
    assert "nope.toml" in (tmp_path / "0.log").read_text()


def bench(place: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """A shell's background job has SIGINT ignored, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def seeds_at(place: Path) -> list[int]:
    return sorted(stored.record.identity.seed_index for stored in read_all(place / "leaderboard" / "records"))


def holder(place: Path, seed: int) -> int:
    """The process that runs this seed, once it has its folder and trains."""
    folder = place / ".runs" / "tiny" / "tiny" / str(seed)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (folder / "events.jsonl").is_file():
            return int((folder / "lock").read_text())
        time.sleep(0.02)
    pytest.fail(f"seed {seed} was not started")


SERIES = ("run", "submissions/tiny.toml", "--track", "tiny", "--device", "cpu", "--jobs", "2", "--seeds")


@pytest.mark.slow
def test_seeds_side_by_side_survive_a_death_and_answer_in_json(place: Path) -> None:
    process = bench(place, *SERIES, "3", "--json")
    os.kill(holder(place, 0), signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "tiny, seed 0 again" in err
    told = json.loads(out)
    assert [(one["seed_index"], one["exit_code"]) for one in told] == [(0, 0), (1, 0), (2, 0)]
    assert all(Path(one["run"]["record"]).is_file() for one in told)
    assert seeds_at(place) == [0, 1, 2]
    again = bench(place, "leaderboard", "--check")  # rebuilt when all had ended
    assert again.communicate()[1] == ""
    assert again.returncode == 0


@pytest.mark.slow
def test_ctrl_c_cancels_what_is_under_way_and_the_same_command_goes_on(place: Path) -> None:
    process = bench(place, *SERIES, "2")
    pids = {holder(place, seed) for seed in (0, 1)}
    children = psutil.Process(process.pid).children(recursive=True)
    assert pids <= {child.pid for child in children}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 9, err
    assert "interrupted" in err
    assert not psutil.wait_procs(children, timeout=5)[1]
    done = bench(place, *SERIES, "2")
    assert done.communicate(timeout=200)[1].count("seed") >= 1
    assert done.returncode == 0
    assert seeds_at(place) == [0, 1]
