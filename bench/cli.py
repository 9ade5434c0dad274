"""The command line: the only reader of arguments and environment. Heavy modules load in their commands."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench.errors import BenchError, Diverged, Interrupted, RecipeError, VerificationFailed
from bench.spec.workspace import Workspace

if TYPE_CHECKING:
    from bench.host.planning import Planned

ROOT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """argparse, with this project's errors instead of its own exit."""

    def error(self, message: str) -> NoReturn:
        """Usage errors are RecipeErrors: one line, a hint, exit code 2."""
        raise RecipeError(message, f"`{self.prog} --help` shows the usage")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is an interruption too
    try:
        options = parser().parse_args([word for word in words if word != "--debug"])
        code = int(options.command(options) or 0)
        sys.stdout.flush()  # here and not at exit, where Python reports a broken pipe itself
        return code
    except BenchError as error:
        return report(error, debug)
    except KeyboardInterrupt:
        hint = "the same command with --resume continues from a checkpoint"
        return report(Interrupted("interrupted", hint), debug)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def report(error: BenchError, debug: bool) -> int:
    """Print an error the way every error is printed."""
    if debug:
        import traceback

        traceback.print_exception(error)
    print("\n".join(error.lines()), file=sys.stderr)
    return error.exit_code


def parser() -> Parser:
    """All commands."""
    top = Parser(prog="bench", description="Measure LLM pretraining speedruns.", allow_abbrev=False)
    top.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = top.add_subparsers(metavar="COMMAND", dest="COMMAND", required=True, parser_class=Parser)

    def add(
        name: str, function: Callable[[argparse.Namespace], int | None], text: str, *flags: str
    ) -> Parser:
        command: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        for flag in flags:
            command.add_argument(flag, **OPTIONS[flag])
        return command

    as_json = "--json"
    add("check", check, "check recipes and list every problem", "recipes", as_json)
    add("show", show, "print a recipe with its bases resolved", "recipe", as_json)
    add("diff", diff, "print what sets two recipes apart", "a", "b", as_json)
    chosen = ("recipe", "--track", "--device", "--data", as_json)
    add("plan", plan, "print what a run would do, cost and need", *chosen)
    add("run", run, "train, evaluate and record a recipe", *chosen, "--seed", "--resume")
    add("verify", verify, "check records against everything they claim", "records", as_json)
    add("leaderboard", leaderboard, "rebuild the board from the records", "--check")
    prepared = ("action", "dataset", "--shards", "--data", "--vocab")
    add("data", data, "pin, fetch or prepare a data set", *prepared)
    add(
        "perf",
        perf,
        "measure this machine's training, loading and harness speed",
        "--data",
        as_json,
        "--steps",
    )
    return top


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argument's type: a whole number of [least, most]."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!a} is not a whole number of {least:,} to {most:,}")
        return int(text)

    return parse


OPTIONS: dict[str, dict[str, Any]] = {
    "recipe": {"type": Path, "help": "a TOML recipe, such as submissions/quick.toml"},
    "recipes": {"type": Path, "nargs": "*", "help": "recipes; default: all of submissions/"},
    "a": {"type": Path, "help": "the recipe to start from"},
    "b": {"type": Path, "help": "the recipe to compare"},
    "records": {"type": Path, "nargs": "*", "help": "record files; default: all"},
    "action": {"choices": ("pin", "fetch", "prepare"), "help": "what to do"},
    "dataset": {"help": "climbmix, fineweb-edu, stdlib or folder:NAME"},
    "--track": {"help": "the track; default: the recipe's own, or the largest this machine meets"},
    "--seed": {
        "type": whole(0, 999),
        "metavar": "INDEX",
        "help": "index into the track's seeds; default: the next",
    },
    "--device": {"choices": ("cuda", "mps", "cpu"), "help": "default: the best there is"},
    "--data": {"type": Path, "help": "data folder; default: .data of the checkout"},
    "--resume": {"action": "store_true", "help": "continue from the newest whole checkpoint"},
    "--json": {"action": "store_true", "help": "JSON on standard output"},
    "--check": {"action": "store_true", "help": "fail if the board is not what the records say"},
    "--shards": {"type": whole(1, 100_000), "default": 8, "help": "training shards (default 8)"},
    "--vocab": {
        "type": whole(300, 2**20),
        "default": 32768,
        "help": "vocabulary to prepare for (default 32768)",
    },
    "--steps": {"type": whole(1, 100_000), "default": 12, "help": "timed steps (default 12)"},
}


def workspace(options: argparse.Namespace) -> Workspace:
    """The checkout, with the data folder asked for."""
    return Workspace(root=ROOT, data=(getattr(options, "data", None) or ROOT / ".data").absolute())


def emit(value: object) -> None:
    """One value as JSON on standard output."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2).decode())


def check(options: argparse.Namespace) -> int:
    """`bench check`."""
    from bench.spec.submission import load, short_name

    failures = []
    for path in options.recipes or sorted((ROOT / "submissions").glob("*.toml")):
        try:
            submission = load(path, ROOT / "submissions")
        except RecipeError as error:
            failures.append(error)
            continue
        if not options.json:
            print(f"{submission.name}: ok, {short_name(submission.recipe)}")
    if options.json:
        emit([{"message": one.message, "problems": one.problems, "hint": one.hint} for one in failures])
    for failure in failures:
        report(failure, False)
    return RecipeError.exit_code if failures else 0


def show(options: argparse.Namespace) -> None:
    """`bench show`."""
    from bench.spec.submission import flatten, load, method

    submission = load(options.recipe, ROOT / "submissions")
    if options.json:
        emit({"name": submission.name, "sha256": submission.sha256, "recipe": submission.recipe})
        return
    print(f"# {submission.name}: {submission.recipe.title}\n# sha256 {submission.sha256}")
    for key, value in flatten(method(submission.recipe)).items():
        if value is not None:
            print(f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    return "none" if value is None else repr(value)


def diff(options: argparse.Namespace) -> None:
    """`bench diff`."""
    from bench.spec.submission import differences, load, short_name

    a, b = (load(path, ROOT / "submissions") for path in (options.a, options.b))
    changes = differences(a.recipe, b.recipe)
    if options.json:
        emit({"short_name": short_name(b.recipe, a.recipe), "changes": changes})
        return
    print(f"{b.name} = {a.name} with {short_name(b.recipe, a.recipe)}" if changes else "the same method")
    width = max((len(field) for field, _, _ in changes), default=0)
    for field, before, after in changes:
        print(f"  {field:<{width}}  {_toml(before)} -> {_toml(after)}")


def planned(options: argparse.Namespace, own_by_default: bool) -> Planned:
    """The plan of a command that names a recipe."""
    from bench.host.planning import plan_here

    space = workspace(options)
    return plan_here(options.recipe, options.track, options.device, space, os.environ, own_by_default)


def plan(options: argparse.Namespace) -> None:
    """`bench plan`."""
    from bench.spec.plan_table import plan_table

    made = planned(options, own_by_default=True).plan
    if options.json:
        emit(made)
    else:
        print(plan_table(made))


def run(options: argparse.Namespace) -> None:
    """`bench run`."""
    from bench.host.allocator import tune_allocator
    from bench.host.clock import Ledger

    ledger = Ledger.start()
    submission, track, made, facts, sentence = planned(options, own_by_default=False)
    from bench.host.console import Console

    console = Console(quiet=options.json)
    console.line(f"{submission.name} on {track.name}" + (f" ({sentence})" if sentence else ""))
    if made.track_fields and submission.recipe.track != track.name:
        console.line(f"{track.track.says} {track.track.says_not}")
    space = workspace(options)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(space.compile_cache))
    tune_allocator()
    with ledger.span("import"):
        from bench.run import RunRequest
        from bench.run import run as conduct
    request = RunRequest(
        submission=submission,
        track=track,
        plan=made,
        facts=facts,
        workspace=space,
        seed_index=options.seed,
        resume=options.resume,
        environment=dict(os.environ),
        image_digest=os.environ.get("SPEEDRUN_IMAGE_DIGEST", ""),
        notes=[sentence] if sentence else [],
    )
    try:
        path = conduct(request, ledger, console)
    except Diverged:  # its record is written and belongs on the board
        from bench.board.build import write_board

        write_board(space)
        raise
    finish(path, space, made, options.json)


def finish(path: Path, space: Workspace, made: Any, as_json: bool) -> None:
    """Remember the rate, rebuild the board, print the summary."""
    from bench.board.build import write_board
    from bench.board.summary import summary
    from bench.host.planning import rate_key, remember_rate
    from bench.records.store import read

    record = read(path).record
    key = rate_key(made.machine.device_name, record.shape.compute_dtype, record.shape.depth)
    flops_per_s = record.timing.tokens_per_s_median * record.shape.flops_per_token
    remember_rate(space.data / "rates.json", key, flops_per_s)
    write_board(space)
    if as_json:
        emit({"record": str(path), "scores": record.scores, "timing": record.timing, "memory": record.memory})
    else:
        print(summary(record, path.relative_to(space.root), space.board.relative_to(space.root)))


def verify(options: argparse.Namespace) -> int:
    """`bench verify`."""
    from bench.records.store import read, record_paths
    from bench.records.verify import verify as problems_of
    from bench.spec.track import load_tracks

    space = workspace(options)
    tracks = {named.name: named for named in load_tracks(space.tracks)}
    found: dict[str, list[str]] = {}
    for path in options.records or record_paths(space.records):
        try:
            stored = read(path)
            found[str(path)] = problems_of(stored, tracks.get(stored.record.identity.track))
        except VerificationFailed as error:
            found[str(path)] = [error.message.removeprefix(f"{path}: ")]
    if options.json:
        emit(found)
    else:
        for name, problems in found.items():
            print(f"{name}: {'ok' if not problems else '; '.join(problems)}")
        print(f"{len(found)} records, {sum(map(bool, found.values()))} with problems")
    return VerificationFailed.exit_code if any(found.values()) else 0


def leaderboard(options: argparse.Namespace) -> None:
    """`bench leaderboard`."""
    from bench.board.build import check_board, write_board

    space = workspace(options)
    if options.check:
        check_board(space)
        print(f"{space.board.relative_to(ROOT)} is what the records say")
    else:
        print(f"wrote {write_board(space).relative_to(ROOT)}")


def data(options: argparse.Namespace) -> None:
    """`bench data pin|fetch|prepare`."""
    from bench.data import command

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    token = os.environ.get("HF_TOKEN") or None
    folder = workspace(options).data
    if options.action == "pin":
        command.pin_dataset(options.dataset, endpoint, token)
    elif options.action == "fetch":
        command.fetch_dataset(options.dataset, options.shards, folder, endpoint, token)
    else:
        command.prepare_dataset(options.dataset, options.shards, options.vocab, folder)


def perf(options: argparse.Namespace) -> None:
    """`bench perf`."""
    from bench.host.allocator import tune_allocator

    space = workspace(options)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(space.compile_cache))
    tune_allocator()
    from bench.perf import measure, perf_table

    figures = measure(space, options.steps)
    if options.json:
        emit(figures)
    else:
        print(perf_table(figures))
