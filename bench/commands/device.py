"""Commands that train: run, replay, perf, perf-levers."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.shared import before_torch, emit, planned, workspace
from bench.errors import Diverged, RecipeError, VerificationFailed
from bench.spec.workspace import Workspace

if TYPE_CHECKING:
    from bench.lever_costs import LeverCost


def run(options: argparse.Namespace) -> int:
    """`bench run`."""
    if options.seeds is not None:
        return run_series(options)
    from bench.host.clock import Ledger

    ledger = Ledger.start()
    submission, track, made, facts, sentence = planned(options, own_by_default=False)
    from bench.host.console import Console

    console = Console(quiet=options.json)
    console.line(f"{submission.name} on {track.name}" + (f" ({sentence})" if sentence else ""))
    if made.track_fields and submission.recipe.track != track.name:
        console.line(f"{track.track.says} {track.track.says_not}")
    space = workspace(options)
    before_torch(options, made.recipe.precision.deterministic)
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
        environment=dict(options.environment),
        image_digest=options.environment.get("SPEEDRUN_IMAGE_DIGEST", ""),
        notes=[sentence] if sentence else [],
    )
    try:
        path = conduct(request, ledger, console)
    except Diverged:  # its record is written and belongs on the board
        from bench.board.build import write_board

        write_board(space)
        raise
    finish(path, space, made, options.json)
    return 0


def run_series(options: argparse.Namespace) -> int:
    """`bench run --seeds N`: those of the first N seeds that have no record."""
    from bench.experiments.runner import Place, run_seeds
    from bench.records.store import recorded_seeds

    if options.seed is not None:
        raise RecipeError("--seed names one seed, --seeds how many", "give one of the two")
    found, space = planned(options, own_by_default=False), workspace(options)
    done = recorded_seeds(space.records, found.track.name, found.submission.name)
    missing = [index for index in range(options.seeds) if index not in done]
    if not missing:
        print(f"seeds 0 to {options.seeds - 1} of {found.submission.name} on {found.track.name} have records")
    place = Place(space, options.device, options.environment)
    return run_seeds(options.recipe.absolute(), found.track.name, missing, place)


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


def replay(options: argparse.Namespace) -> int:
    """`bench replay`."""
    from bench.host.console import Console
    from bench.host.machine import detect
    from bench.host.planning import plan_submission
    from bench.records.replayed import write_replay
    from bench.records.store import read
    from bench.records.verify import require_valid
    from bench.spec.submission import Submission, decode_recipe
    from bench.spec.track import load_track

    space, stored = workspace(options), read(options.record)
    run_of = stored.record.identity
    track = load_track(run_of.track, space.tracks)
    require_valid(stored, track)
    recipe = decode_recipe(run_of.recipe_resolved, str(stored.path))
    submission = Submission(run_of.recipe, recipe, run_of.recipe_sha256)
    facts = detect(options.device, environment=options.environment)
    planned = plan_submission(submission, track, facts, space, options.environment)
    before_torch(options, recipe.precision.deterministic)
    from bench.replay import open_rerun
    from bench.replay import replay as execute

    rerun, console = open_rerun(stored, planned, space, options.environment), Console(quiet=options.json)
    nonce = options.nonce or secrets.token_hex(8)
    outcome = execute(stored, rerun, nonce, options.segments, facts.device_name, console.line)
    path = write_replay(space.replays, outcome)
    if options.json:
        emit(outcome)
    else:
        verdict = "passed" if outcome.passed else "FAILED"
        print(f"replay {verdict}: {outcome.says}\nwrote {path.relative_to(space.root)}")
    return 0 if outcome.passed else VerificationFailed.exit_code


def perf_levers(options: argparse.Namespace) -> None:
    """`bench perf-levers`."""
    before_torch(options)
    from bench.lever_costs import levers_table
    from bench.perf_levers import measure_levers

    def report(cost: LeverCost) -> None:
        print(
            f"{cost.name}: {cost.times_control.median:.3f} times {cost.control}", file=sys.stderr, flush=True
        )

    costs = measure_levers(workspace(options), options.levers, options.steps, report)
    if options.json:
        emit(costs)
    else:
        print(levers_table(costs))


def perf(options: argparse.Namespace) -> None:
    """`bench perf`."""
    before_torch(options)
    from bench.perf import measure, perf_table

    figures = measure(workspace(options), options.steps)
    if options.json:
        emit(figures)
    else:
        print(perf_table(figures))
