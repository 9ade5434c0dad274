"""The command line: the only reader of arguments and environment. Heavy modules load in their commands."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bench.commands import core, data, device, experiments, horizon, host, kernels, mirror, recipes, records
from bench.errors import BenchError, DataError, Interrupted, RecipeError
from kernels.choices import IMPLEMENTATIONS

FAULT = 1  # the exit code of what no error of ours names
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
        options.root, options.environment = ROOT, os.environ
        code = int(options.command(options) or 0)
        if sys.stdout is not None:  # closed by the caller: `>&-`
            sys.stdout.flush()  # here and not at exit, where Python reports a broken pipe itself
        return code
    except BenchError as error:
        return report(error, debug)
    except KeyboardInterrupt:
        command = next((word for word in words if not word.startswith("-")), "")
        resume = " with --resume" if command in ("run", "launch") else ""
        hint = f"the same command{resume} goes on from what is kept"
        return report(Interrupted("interrupted", hint), debug)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of a file that no command expected to fail, or of standard output itself
        where = f"{error.filename}: " if error.filename else ""
        return report(DataError(f"{where}{error.strerror or error}", "`--debug` shows where"), debug)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0][:300]
        print(f"error: a fault of bench itself: {type(error).__name__}: {first}", file=sys.stderr)
        print("hint: `--debug` shows where; please report it", file=sys.stderr)
        if debug:
            raise
        return FAULT


def report(error: BenchError, debug: bool) -> int:
    """Print an error the way every error is printed."""
    if debug:
        import traceback

        traceback.print_exception(error)
    print("\n".join(error.lines()), file=sys.stderr)
    return error.exit_code


def parser() -> Parser:
    """All commands."""
    top = Parser(
        prog="bench",
        description="Measure LLM pretraining speedruns.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=18),
        allow_abbrev=False,
    )
    top.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = top.add_subparsers(metavar="COMMAND", dest="COMMAND", required=True, parser_class=Parser)

    for name, function, text, arguments in COMMANDS:
        command: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        for argument in arguments.split():
            command.add_argument(argument, **ARGUMENTS[argument])
    return top


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argument's type: a whole number of [least, most]."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!a} is not a whole number of {least:,} to {most:,}")
        return int(text)

    return parse


def number(text: str) -> float:
    """An argument's type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0.0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!a} is not a number above 0")
    return value


def counts(text: str) -> list[int]:
    """An argument's type: counts with commas between them."""
    return [count(word) for word in text.split(",")]


def count(text: str) -> int:
    """An argument's type: a count such as 38M, 750K or 1200."""
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    value = number(text if factor == 1 else text[:-1]) * factor
    if not 1 <= value <= 10**12:
        raise argparse.ArgumentTypeError(f"{text!a} is not a count of 1 to 1000B")
    return round(value)


CHOSEN = "recipe --track --device --data"
PROVING = "--device --kernel --implementation --examples --example-seed --data"
MEASURING = "--device --kernel --shapes --rounds"
CHECKING = "--device --out --data --seconds"
ASKING = "--max-per-task --baselines --squad --bundle --device --data --json --lm-eval-table"
IMAGINING = "--world --nodes --link --network"
PLACING = "--nodes --node-rank --rendezvous"
REPLAYING = f"record --segments --nonce {PLACING} --device --data --json"
GATING = "--baseline --track --target --cycle --phase --miniseries --target-depth --plot --concern"
SHAPING = "--params --head-dim --tied --balanced --fastest --tolerance"
COMPARING = "a b --track --effect --plot --json"
INFERRING = "dataset --vocab --lags --entropy-rate --shards --checkpoint --recipe --track --horizons --target"
SPREADING = "--jobs --executor --slurm"
RUNNING = f"--seed --seeds {SPREADING} --resume --tracker --json"
LAUNCHING = f"{RUNNING} {PLACING}"
SWEEPING = f"sweep --plan --base-recipe --track {SPREADING} --device --data --json"
# Name, function, what it does, arguments.
COMMANDS: tuple[tuple[str, Callable[[argparse.Namespace], int | None], str, str], ...] = (
    ("new", recipes.new, "write a new recipe that stands on another", "name --base"),
    ("check", recipes.check, "check recipes and list every problem", "recipes --json"),
    ("show", recipes.show, "print a recipe with its bases resolved", "recipe --json"),
    ("diff", recipes.diff, "print what sets two recipes apart", "a b --json"),
    ("plan", recipes.plan, "print what a run would do, cost and need", f"{CHOSEN} {IMAGINING} --json"),
    ("prove", kernels.prove, "check kernels against their references on this device", f"{PROVING} --json"),
    ("run", device.run, "train, evaluate and record a recipe", f"{CHOSEN} {RUNNING}"),
    ("launch", device.launch, "`run` on every device of the track", f"{CHOSEN} {LAUNCHING}"),
    ("replay", device.replay, "execute drawn segments of a recorded run again", REPLAYING),
    ("core", core.core, "score a checkpoint on CORE's 22 tasks", f"checkpoint {ASKING}"),
    ("compare", experiments.compare, "what the records tell of two recipes", COMPARING),
    ("gate", experiments.gate, "decide on a candidate by its records", f"candidate {GATING} --json"),
    ("arch", experiments.arch, "shapes of a given size, by their split", f"{SHAPING} --write --json"),
    ("sweep", experiments.sweep, "plan and run a sweep of recipes", SWEEPING),
    (
        "horizon",
        horizon.horizon,
        "infer the tokens to a target from a text's statistics",
        f"{INFERRING} --seeds --plan --folder --device --data --json",
    ),
    ("verify", records.verify, "check records against everything they claim", "records --json --markdown"),
    ("submit", records.submit, "make a recipe and its records one change for review", "recipe --commit"),
    ("leaderboard", records.leaderboard, "rebuild the board from the records", "--check --calibrate"),
    ("export", records.export, "print the records in the experiments' columns", "--csv"),
    ("mirror", mirror.mirror, "show a run in a tracker", "run --tracker --live --data"),
    ("data", data.data, "pin, fetch or prepare a data set", "action dataset --shards --data --vocab"),
    ("perf", device.perf, "measure this machine's speed of training and loading", "--data --steps --json"),
    ("perf-levers", device.perf_levers, "time levers beside their base", "levers --data --steps --json"),
    ("perf-ranks", device.perf_ranks, "time a step shared by N processes", "--world --data --steps --json"),
    ("kernels", kernels.kernels, "time kernels beside their references", f"{MEASURING} --json"),
    ("doctor", host.doctor, "say what this machine lacks for a run", "--self-test --device --data --json"),
    ("gpu-check", kernels.gpu_check, "prove, time and train on a device, as JSON", CHECKING),
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "recipe": {"type": Path, "help": "a TOML recipe, such as submissions/quick.toml"},
    "name": {"help": "the new recipe's: submissions/NAME.toml"},
    "recipes": {"type": Path, "nargs": "*", "help": "recipes; default: all of submissions/"},
    "levers": {"nargs": "*", "help": "names after d4- in submissions/; default: all"},
    "a": {"type": Path, "help": "the recipe to start from"},
    "b": {"type": Path, "help": "the recipe to compare"},
    "record": {"type": Path, "help": "a record of leaderboard/records"},
    "--segments": {"type": whole(1, 64), "default": 3, "help": "segments to draw (default: 3)"},
    "--nonce": {"help": "what draws them; random if left out"},
    "candidate": {"type": Path, "help": "the recipe to decide on"},
    "checkpoint": {"type": Path, "help": "a run's folder under .runs, or one checkpoint of it"},
    "records": {"type": Path, "nargs": "*", "help": "record files; default: all"},
    "action": {"choices": ("pin", "fetch", "prepare"), "help": "what to do"},
    "dataset": {"help": "climbmix, fineweb-edu, stdlib or folder:NAME"},
    "--track": {"help": "the track; default: the recipe's own, or the largest this machine meets"},
    "--seeds": {"type": whole(1, 1000), "metavar": "N", "help": "one run for each of the first N seeds"},
    "--seed": {
        "type": whole(0, 999),
        "metavar": "INDEX",
        "help": "index into the track's seeds; default: the next",
    },
    "--jobs": {"type": whole(1, 1000), "metavar": "N", "help": "runs at a time (default: 1; on Slurm all)"},
    "--executor": {"choices": ("local", "slurm"), "default": "local", "help": "default: local"},
    "--slurm": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "a parameter of Slurm, such as partition=gpu, gpus_per_node=8, timeout_min=240; repeatable",
    },
    "--base-recipe": {
        "type": Path,
        "metavar": "RECIPE",
        "help": "the recipe that cells stand on, instead of the sweep's",
    },
    "--device": {"choices": ("cuda", "mps", "cpu"), "help": "default: the best there is"},
    "--data": {"type": Path, "help": "data folder; default: .data of the checkout"},
    "--resume": {"action": "store_true", "help": "continue from the newest whole checkpoint"},
    "--nodes": {"type": whole(1, 4096), "default": 1, "help": "machines of the run (default 1)"},
    "--node-rank": {"type": whole(0, 4095), "default": 0, "help": "which of them this is, from 0"},
    "--world": {"type": whole(1, 4096), "metavar": "N", "help": "plan for N devices, and predict their step"},
    "--link": {"type": number, "metavar": "GB/s", "help": "a device's to others of its machine, one way"},
    "--network": {"type": number, "metavar": "GB/s", "help": "a device's to other machines, one way"},
    "--rendezvous": {"metavar": "HOST:PORT", "help": "where the machines meet: a free port of the first"},
    "--json": {"action": "store_true", "help": "JSON on standard output"},
    "--base": {"default": "run6-fixed", "help": "the recipe it stands on (default run6-fixed)"},
    "--commit": {"action": "store_true", "help": "make the branch and the commit; nothing is pushed"},
    "--markdown": {"action": "store_true", "help": "as a table for a pull request"},
    "--check": {"action": "store_true", "help": "fail if the board is not what the records say"},
    "--calibrate": {"metavar": "TRACK/RECIPE", "help": "take a track's spread from these runs, then rebuild"},
    "--csv": {"action": "store_true", "required": True, "help": "as comma-separated values"},
    "--max-per-task": {"type": whole(1, 10**6), "help": "the first N items of each task: a limited score"},
    "--baselines": {
        "choices": ("v1", "v2"),
        "default": "v1",
        "help": "accuracies of guessing: v1 (default) as nanochat's, v2 as DCLM corrected them",
    },
    "--squad": {
        "choices": ("nanochat", "dclm"),
        "default": "nanochat",
        "help": "whose prompts SQuAD gets (default nanochat)",
    },
    "--bundle": {"type": Path, "help": "folder of the evaluation bundle; default: downloaded once"},
    "--lm-eval-table": {"action": "store_true", "help": "as the table of lm-evaluation-harness"},
    "--shards": {"type": whole(1, 100_000), "default": 8, "help": "training shards (default 8)"},
    "--vocab": {
        "type": whole(300, 2**20),
        "default": 32768,
        "help": "vocabulary to prepare for (default 32768)",
    },
    "--effect": {"type": number, "help": "the difference of the score worth knowing; default: the one found"},
    "--baseline": {"type": Path, "required": True, "help": "the recipe it has to beat"},
    "--target": {"type": number, "help": "the score to reach; default: the track's target, if it has one"},
    "--cycle": {"type": whole(1, 999), "default": 1, "help": "cycle of experiments (default 1)"},
    "--phase": {"type": whole(1, 5), "default": 1, "help": "phase of the cycle (default 1)"},
    "--miniseries": {
        "nargs": "?",
        "const": "",
        "metavar": "TRACK",
        "help": "judge both methods' runs at several depths of TRACK (default: of the one with most depths)",
    },
    "--target-depth": {
        "type": whole(1, 200),
        "metavar": "DEPTH",
        "help": "the depth that the miniseries' claim is about; default: the deepest that was run",
    },
    "--concern": {"action": "append", "default": [], "help": "a cause to roll back, in words; repeatable"},
    "--params": {"type": count, "required": True, "help": "parameters, such as 38M"},
    "--head-dim": {"type": whole(8, 256), "default": 64, "help": "width of a head (default 64)"},
    "--tied": {"action": "store_true", "help": "one table for embedding and head"},
    "--balanced": {"action": "store_true", "help": "only shapes whose shares differ by at most 0.01"},
    "--fastest": {"action": "store_true", "help": "cheapest token first, instead of the most balanced"},
    "--tolerance": {"type": number, "default": 0.015, "help": "of the parameters (default 0.015)"},
    "--write": {"metavar": "NAME", "help": "write the first shape as submissions/NAME.toml"},
    "run": {"type": Path, "help": "a record, or a run's folder under .runs"},
    "--tracker": {
        "choices": ("wandb", "trackio", "tensorboard"),
        "help": "show the run there too, if it is installed; by default nothing leaves the machine",
    },
    "--live": {
        "type": whole(0, 2**63 - 1),
        "metavar": "NS",
        "help": "follow a log written after this moment until standard input ends, as `run --tracker` does",
    },
    "sweep": {"type": Path, "help": "a TOML sweep, such as submissions/sweeps/warmdown-d4.toml"},
    "--plan": {"action": "store_true", "help": "only print what it would do and cost"},
    "--lags": {
        "type": horizon.lag_list,
        "default": (1, 2, 4, 8, 16, 32),
        "metavar": "N,N,...",
        "help": "lags of the correlations (default 1,2,4,8,16,32)",
    },
    "--entropy-rate": {"type": number, "help": "nats a token that no context removes (default 0)"},
    "--checkpoint": {"type": Path, "help": "a run's folder: entropies from its loss by position"},
    "--recipe": {"type": Path, "help": "the recipe to calibrate with, at two or three short horizons"},
    "--horizons": {"type": counts, "metavar": "N,N,...", "help": "their tokens, such as 1M,2M,4M"},
    "--folder": {"type": Path, "help": "where to write; default: leaderboard/horizon/NAME"},
    "--plot": {"type": Path, "metavar": "OUT", "help": "write a chart as SVG"},
    "--kernel": {"choices": tuple(IMPLEMENTATIONS), "help": "one op; default: all"},
    "--implementation": {"help": "one of the op's implementations; default: all this device can run"},
    "--examples": {"type": whole(1, 10**6), "default": 40, "help": "of each property (default 40)"},
    "--example-seed": {"type": whole(0, 2**31), "default": 0, "help": "seed of the examples (default 0)"},
    "--shapes": {
        "choices": ("d4", "d6", "d12", "d24"),
        "help": "shapes of this model; default: the device's",
    },
    "--rounds": {"type": whole(3, 1000), "default": 7, "help": "timed rounds (default 7)"},
    "--out": {"type": Path, "required": True, "help": "folder for the JSON files"},
    "--seconds": {"type": whole(30, 36000), "default": 520, "help": "time for all of it (default 520)"},
    "--self-test": {"action": "store_true", "help": "also train two steps here and compare with the CPU"},
    "--steps": {"type": whole(1, 100_000), "default": 12, "help": "timed steps (default 12)"},
}
