"""The command line: exit codes, one line and a hint on standard error, nothing heavy for light commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from bench import cli
from bench.errors import BenchError
from bench.records.store import write_once
from bench.spec.submission import load
from tests.records.sample import changed, sample
from tests.spec.recipes import SHIPPED, corrupted

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    *("new", "check", "show", "diff", "plan", "prove", "run", "launch", "replay", "core"),
    *("compare", "gate", "arch", "sweep", "horizon", "verify", "submit", "leaderboard", "export", "mirror"),
    *("data", "perf", "perf-levers", "perf-ranks", "kernels", "doctor", "gpu-check"),
)


def bench(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own: recipes, tracks, one record."""
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    shutil.copytree(ROOT / "submissions", tmp_path / "submissions")
    write_once(tmp_path / "leaderboard" / "records", *sample())
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """The error line of a command that must fail: one line, then problems indented, then a hint."""
    assert cli.main(list(words)) == code
    first, *problems, last = capsys.readouterr().err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert last.startswith("hint: ")
    assert all(problem.startswith("  ") for problem in problems)
    return first


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: bench {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert [
        line.split()[0] for line in out.split("\n") if line.startswith("    ") and line[4] != " "
    ] == list(COMMANDS)
    assert "--debug" in out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nope"],
        ["plan"],
        ["plan", "a.toml", "b.toml"],
        ["plan", "a.toml", "--nope"],
        ["plan", "a.toml", "--js"],
        ["plan", "a.toml", "--device", "tpu"],
        ["run", "a.toml", "--seed", "-1"],
        ["run", "a.toml", "--seed", "1e3"],
        ["run", "a.toml", "--seed", "1" * 5000],
        ["data", "burn", "stdlib"],
        ["data", "fetch", "climbmix", "--shards", "0"],
        ["perf", "--steps", "many"],
        ["core"],
        ["compare", "a"],
        ["compare", "a", "b", "--effect", "nan"],
        ["gate", "a"],
        ["arch"],
        ["arch", "--params", "many"],
        ["sweep"],
        ["sweep", "submissions/sweeps/nope.toml"],
        ["core", "folder", "--max-per-task", "0"],
        ["core", "folder", "--squad", "mine"],
        ["data", "fetch", "../x"],
        ["data", "fetch", "stdlib"],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help" not in failed(capsys, 2, *words)


def test_check_knows_the_tracks(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkout / "submissions" / "stray.toml"
    path.write_text('base = "quick"\ntrack = "nosuch"\n')
    assert failed(capsys, 2, "check", str(path)) == "error: stray: no track 'nosuch'"
    path.unlink()


def test_a_missing_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show"], ["plan"], ["run"], ["check"]):
        assert "run8.toml: no such file" in failed(capsys, 2, *command, "submissions/run8.toml")


@given(content=corrupted())
@settings(max_examples=40)
def test_no_recipe_from_a_stranger_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("stranger") / "stranger.toml"
    path.write_bytes(content)
    for words in (
        ["check", str(path)],
        ["show", str(path)],
        ["plan", str(path), "--device", "cpu", "--json"],
    ):
        assert cli.main(words) in (0, 2, 3)


def test_every_problem_is_printed(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[model]\ndepht = 4\nhead_dim = 7\n[batch]\ntokens = -1\n")
    done = bench("plan", str(tmp_path / "bad.toml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.split("\n") == [
        f"error: {tmp_path / 'bad.toml'}: 3 problems",
        "  model.depht: no such field; did you mean 'depth'?",
        "  model.head_dim = 7: expected int >= 8 (width of a head)",
        "  batch.tokens = -1: expected int >= 1; allowed: 'auto' (tokens a step)",
        "hint: the tables of bench/spec/ say what each field is, its unit and its range",
        "",
    ]


def test_debug_prints_the_traceback() -> None:
    plain, debug = (bench(*words, "show", "nope.toml") for words in ([], ["--debug"]))
    assert plain.returncode == debug.returncode == 2
    assert "Traceback" not in plain.stderr
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)


def test_new(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "mine", "--base", "run6"]) == 0
    assert "make plan SUB=submissions/mine.toml" in capsys.readouterr().out
    path = checkout / "submissions" / "mine.toml"
    before = path.read_bytes()
    assert cli.main(["check", str(path)]) == 0
    assert "there already" in failed(capsys, 2, "new", "mine")
    assert path.read_bytes() == before
    for name in ("../mine", "Mine", "", "a/b", ".mine", "x" * 65):
        failed(capsys, 2, "new", name)
    assert "run66.toml: no such file" in failed(capsys, 2, "new", "other", "--base", "run66")
    assert sorted(one.stem for one in (checkout / "submissions").glob("*.toml")) == sorted([*SHIPPED, "mine"])


def test_check_lists_every_recipe(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == SHIPPED
    (checkout / "submissions" / "broken.toml").write_text("[model]\ndepth = 0")
    (checkout / "submissions" / "worse.toml").write_text("[model")
    assert cli.main(["check"]) == 2
    output = capsys.readouterr()
    assert [line.split(":")[0] for line in output.out.splitlines()] == SHIPPED
    assert output.err.count("error: ") == output.err.count("hint: ") == 2
    assert cli.main(["check", "--json"]) == 2
    listed = json.loads(capsys.readouterr().out)
    assert [len(one["problems"]) for one in listed] == [1, 0]


@pytest.mark.parametrize("name", SHIPPED)
def test_show_says_the_resolved_recipe(name: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", f"submissions/{name}.toml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    again = checkout / "submissions" / "again.toml"
    assert cli.main(["show", f"submissions/{name}.toml"]) == 0
    again.write_text(capsys.readouterr().out)
    assert load(again).sha256 == shown["sha256"] == load(ROOT / "submissions" / f"{name}.toml").sha256


def test_diff(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = ["submissions/run6-fixed.toml", "submissions/run7.toml"]
    assert cli.main(["diff", *recipes]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run7 = run6-fixed with d22+MuonClip weight_rms+warmdown 0.85+ratio 12+")
    assert "  model.depth               24 -> 22\n" in out
    assert cli.main(["diff", recipes[0], recipes[0]]) == 0
    assert capsys.readouterr().out == "the same method\n"
    assert cli.main(["diff", *recipes, "--json"]) == 0
    assert ["model.depth", 24, 22] in json.loads(capsys.readouterr().out)["changes"]


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "submissions/run7.toml", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run7 on gpt2-8xh100\n")
    assert out.endswith("refused: track gpt2-8xh100 is for a machine of class 8xH100, this is cpu\n")
    assert (
        cli.main(["plan", "submissions/run7.toml", "--track", "cpu-quick", "--device", "cpu", "--json"]) == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert (made["track_name"], made["iterations"], made["refusals"]) == ("cpu-quick", 64, [])


@pytest.mark.parametrize("track", ["nope", "../tracks/cpu-quick", ""])
def test_a_wrong_track(track: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "track" in failed(capsys, 2, "plan", "submissions/run7.toml", "--track", track)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="has a GPU")
def test_a_run_on_a_device_that_is_not_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no CUDA device" in failed(capsys, 3, "run", "submissions/run7.toml", "--device", "cuda")


def test_verify_lists_every_record(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify"]) == 0
    assert capsys.readouterr().out.endswith("1 records, 0 with problems\n")
    record, events = sample(seed_index=1)
    write_once(checkout / "leaderboard" / "records", changed(record, "timing.mfu", 2.0), events)
    junk = checkout / "leaderboard" / "records" / "cpu-quick" / "quick" / "2-00000000.json"
    junk.write_text("{}")
    assert cli.main(["verify"]) == 8
    out = capsys.readouterr().out
    assert "MFU 200.0% is impossible" in out
    assert "2-00000000.json: " in out
    assert out.endswith("3 records, 2 with problems\n")
    assert cli.main(["verify", "--json"]) == 8
    broken = [
        [one["rule"] for one in its if one["refuses"]] for its in json.loads(capsys.readouterr().out).values()
    ]
    assert broken == [[], ["mfu", "mfu"], ["schema"]]
    assert "nope.json" in failed(capsys, 5, "verify", "nope.json")


def test_verify_for_a_pull_request(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, events = sample(seed_index=1)
    loud = changed(record, "machine.machine_class", "<b>|`x`\n@you")
    write_once(checkout / "leaderboard" / "records", loud, events)
    assert cli.main(["verify", "--markdown"]) == 8
    out = capsys.readouterr().out
    assert "`machine-class`" in out
    assert "`complete-seeds`" in out
    assert out.endswith("2 records, 1 refused. RULES.md says what each rule asks.\n")
    assert not {"<b>", "`x`", "@you"} & set(out.replace("|", " ").split())


def test_leaderboard(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = checkout / "leaderboard" / "LEADERBOARD.md"
    failed(capsys, 8, "leaderboard", "--check")
    assert cli.main(["leaderboard"]) == 0
    assert cli.main(["leaderboard", "--check"]) == 0
    assert "**quick**" in board.read_text(encoding="utf-8")
    board.write_text(board.read_text(encoding="utf-8").replace("2.5000", "1.5000"), encoding="utf-8")
    capsys.readouterr()
    assert "LEADERBOARD.md:" in failed(capsys, 8, "leaderboard", "--check")


def test_a_calibration_is_written_with_the_board(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed_index in range(1, 6):
        bpb, train_s = 2.5 + seed_index / 100, 15.0 + seed_index
        write_once(checkout / "leaderboard" / "records", *sample("quick", seed_index, bpb, train_s=train_s))
    assert "1 problem" not in failed(capsys, 2, "leaderboard", "--calibrate", "cpu-quick/none")
    assert "exclude" in failed(capsys, 2, "leaderboard", "--calibrate", "cpu-quick/quick", "--check")
    assert cli.main(["leaderboard", "--calibrate", "cpu-quick/quick"]) == 0
    assert "wrote leaderboard/calibrations/cpu-quick.json" in capsys.readouterr().out
    assert cli.main(["leaderboard", "--check"]) == 0
    assert "6 runs of quick" in (checkout / "leaderboard" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "fetch", "no-such"], "no-such"),
        (["data", "pin", "no-such"], "no-such"),
        (["data", "prepare", "folder:no-such"], "no-such"),
        (["data", "prepare", "../x"], "../x"),
    ],
)
def test_data_errors_name_the_data_set(
    words: list[str], told: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([*words, "--data", str(checkout / "data")])
    first, *_, last = capsys.readouterr().err.rstrip("\n").split("\n")
    assert code in (2, 5)
    assert told in first
    assert last.startswith("hint: ")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """Buffered output meets the broken pipe when it is flushed, unbuffered output when it is printed."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for environment in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
        command = [sys.executable, "-m", "bench", "plan", "submissions/run7.toml", "--json"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


def test_every_error_has_its_own_exit_code() -> None:
    codes = {
        kind.__name__: kind.exit_code
        for kind in BenchError.__subclasses__()
        if kind.__module__ == "bench.errors"
    }
    assert sorted(codes.values()) == list(range(2, 10))


def test_light_commands_load_nothing_heavy() -> None:
    program = (
        "import sys; from bench.cli import main; "
        "codes = [main(words) for words in (['check'], ['show', 'submissions/run7.toml'], ['verify'])]; "
        "found = {'torch', 'numpy', 'pyarrow', 'tiktoken'} & set(sys.modules); "
        "sys.exit(str(found) if found else max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
