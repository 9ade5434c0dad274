"""Commands that train: run, launch, replay, perf, perf-levers, perf-ranks."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.shared import before_torch, emit, jobs_asked, planned, tell, workspace
from bench.errors import Diverged, PlanRefused, RecipeError, VerificationFailed
from bench.spec.workspace import Workspace

if TYPE_CHECKING:
    from bench.checkup.lever_costs import LeverCost
    from bench.host.clock import Ledger
    from bench.host.facts import MachineFacts
    from bench.host.planning import Planned
    from bench.records.replayed import Replay
    from bench.records.store import StoredRecord


def run(options: argparse.Namespace) -> int:
    """`bench run`."""
    if options.seeds is not None:
        return run_series(options)
    if options.jobs or options.slurm or options.executor != "local":
        raise RecipeError("--jobs, --executor and --slurm spread several runs", "add --seeds N")
    from bench.host.clock import Ledger

    ledger = Ledger.start()
    return _conduct(options, planned(options, own_by_default=False), ledger)


def launch(options: argparse.Namespace) -> int:
    """`bench launch`: `bench run` on every device of the track."""
    if options.seeds is not None:
        return run_series(options)
    from bench.host.clock import Ledger

    ledger = Ledger.start()
    options.environment["GROUP_WORLD_SIZE"] = str(options.nodes)  # as torchrun tells its processes
    found = planned(options, own_by_default=False)
    if found.plan.world_size == 1:
        if options.nodes > 1 or options.node_rank or options.rendezvous:
            raise PlanRefused(
                f"{found.track.name} is a track of one device: there is nothing to deal to machines",
                "leave --nodes, --node-rank and --rendezvous out",
            )
        return _conduct(options, found, ledger)
    if found.plan.refusals:
        raise PlanRefused(found.plan.refusals[0], "`bench plan` shows the numbers")
    words = ["run", str(options.recipe), "--track", found.track.name]
    for name in ("device", "seed", "tracker"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--resume"] if options.resume else []
    return _ranks(options, words, found.plan.world_size)


def _conduct(options: argparse.Namespace, found: Planned, ledger: Ledger) -> int:
    from bench.host.console import Console

    submission, track, made, facts, sentence = found
    is_first = options.environment.get("RANK", "0") == "0"
    console = Console(quiet=options.json or not is_first)
    console.line(f"{submission.name} on {track.name}" + (f" ({sentence})" if sentence else ""))
    if made.track_fields and submission.recipe.track != track.name:
        console.line(f"{track.track.says} {track.track.says_not}")
    from bench.host.collector import loaded_for_good
    from bench.records.mirror import mirrored
    from bench.training.run_folder import folder_path

    space = workspace(options)
    before_torch(options, made.recipe.precision.deterministic)
    with ledger.span("import"), loaded_for_good():
        from bench.run import RunRequest
        from bench.run import run as conduct
    index = _seed_index(options, space, submission.name, track.name)
    request = RunRequest(
        submission=submission,
        track=track,
        plan=made,
        facts=facts,
        workspace=space,
        seed_index=index,
        resume=options.resume,
        environment=dict(options.environment),
        image_digest=options.environment.get("SPEEDRUN_IMAGE_DIGEST", ""),
        notes=[sentence] if sentence else [],
    )
    folder = folder_path(space.runs, track.name, submission.name, index)
    tracker = options.tracker if is_first else None
    try:
        with mirrored(tracker, folder, space.data, options.environment, _warn):
            path = conduct(request, ledger, console)
    except Diverged:  # its record is written and belongs on the board
        from bench.board.build import write_board

        write_board(space)
        raise
    if path is not None:
        finish(path, space, made, options.json)
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _seed_index(options: argparse.Namespace, space: Workspace, recipe: str, track: str) -> int:
    """The seed asked for, or the lowest without a record."""
    from bench.records.store import next_seed_index

    return options.seed if options.seed is not None else next_seed_index(space.records, track, recipe)


def run_series(options: argparse.Namespace) -> int:
    """`bench run --seeds N`: those of the first N seeds that have no record."""
    from bench.board.build import write_board
    from bench.experiments.jobs import require_room, time_decides
    from bench.experiments.runner import Place
    from bench.experiments.seeds import run_seeds, worst_code
    from bench.records.store import recorded_seeds

    if options.seed is not None:
        raise RecipeError("--seed names one seed, --seeds how many", "give one of the two")
    found, space = planned(options, own_by_default=False), workspace(options)
    jobs = jobs_asked(options, found.track)
    require_room(jobs, found.track, time_decides(found.track.track, [found.plan.recipe.horizon]))
    done = recorded_seeds(space.records, found.track.name, found.submission.name)
    missing = [index for index in range(options.seeds) if index not in done]
    if not missing and not options.json:
        print(f"seeds 0 to {options.seeds - 1} of {found.submission.name} on {found.track.name} have records")
    place = Place(space, options.device, options.environment, options.tracker)
    recipe = options.recipe.absolute()
    ended = run_seeds(recipe, found.track.name, missing, place, jobs, tell, as_json=options.json)
    if ended and not jobs.is_inline:  # of runs side by side the last to write need not have seen all records
        write_board(space)
    if options.json:
        emit([one._asdict() for one in ended])
    return worst_code(ended)


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
    options.environment.setdefault("GROUP_WORLD_SIZE", str(options.nodes))
    facts = detect(options.device, environment=options.environment)
    planned = plan_submission(submission, track, facts, space, options.environment)
    before_torch(options, recipe.precision.deterministic)
    world = planned.plan.world_size
    if world > 1 and "RANK" not in options.environment:
        words = ["replay", str(options.record), "--segments", str(options.segments)]
        words += [] if options.device is None else ["--device", options.device]
        words += [] if options.nonce is None else ["--nonce", options.nonce]
        return _ranks(options, words, world)
    from bench.replay import open_rerun
    from bench.replay import replay as execute
    from bench.training.ranks import joined

    with joined(options.environment, world) as ranks:
        console = Console(quiet=options.json or not ranks.is_first)
        rerun = open_rerun(stored, planned, space, options.environment, ranks)
        nonce = ranks.share(options.nonce or secrets.token_hex(8))
        outcome = execute(stored, rerun, nonce, options.segments, facts.device_name, console.line)
    return _replayed(options, stored, outcome, facts) if ranks.is_first else 0


def _replayed(options: argparse.Namespace, stored: StoredRecord, outcome: Replay, facts: MachineFacts) -> int:
    from bench.host.provenance import Provenance, is_code_of
    from bench.records.replayed import bits_depend_on, write_replay

    space, run_of = workspace(options), stored.record.identity
    recorded = Provenance(run_of.git_commit, run_of.git_dirty_sha256)
    if not outcome.passed and not is_code_of(space.root, recorded):
        raise PlanRefused(
            f"{stored.path}: {outcome.says}; but the code is not the record's, so that says nothing of it",
            f"replay it at commit {run_of.git_commit[:12]}, in a `git worktree` of its own",
        )
    is_bitwise = any(segment.compared == "bitwise" for segment in outcome.segments)
    if not outcome.passed and is_bitwise and (others := bits_depend_on(stored.record, facts)):
        raise PlanRefused(
            f"{stored.path}: {outcome.says}; but this machine need not give the same bits: "
            + "; ".join(others),
            "replay it on a machine like the record's, or run the seed again and compare the scores",
        )
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
    from bench.checkup.lever_costs import levers_table
    from bench.checkup.levers import measure_levers

    def report(cost: LeverCost) -> None:
        print(
            f"{cost.name}: {cost.times_control.median:.3f} times {cost.control} ({cost.between})",
            file=sys.stderr,
            flush=True,
        )

    costs = measure_levers(workspace(options), options.levers, options.steps, report)
    if options.json:
        emit(costs)
    else:
        print(levers_table(costs))


def perf(options: argparse.Namespace) -> None:
    """`bench perf`."""
    before_torch(options)
    from bench.checkup.perf import measure, perf_table

    figures = measure(workspace(options), options.steps)
    if options.json:
        emit(figures)
    else:
        print(perf_table(figures))


def perf_ranks(options: argparse.Namespace) -> int:
    """`bench perf-ranks`: starts itself as the ranks."""
    world = options.world or 2
    if world < 2:
        raise RecipeError(f"--world {world}: one process shares nothing", "two or more")
    before_torch(options)
    if "RANK" not in options.environment:
        words = ["perf-ranks", "--world", str(world), "--steps", str(options.steps)]
        return _ranks(options, words, world)
    from bench.checkup.ranks import measure_ranks, ranks_table

    figures = measure_ranks(workspace(options), world, options.steps, options.environment)
    if figures is not None:
        emit(figures) if options.json else print(ranks_table(figures))
    return 0


def _ranks(options: argparse.Namespace, words: list[str], world: int) -> int:
    """This command again, as the ranks of this machine."""
    from bench.training.launch import Place
    from bench.training.launch import launch as start

    words += [] if options.data is None else ["--data", str(options.data)]
    words += ["--json"] if options.json else []
    place = {name: getattr(options, name) for name in Place._fields if hasattr(options, name)}
    return start(words, world, Place(**place), options.environment)
