"""What commands share: where things lie, the plan they were asked for, and JSON for programs.

`options` holds the parsed arguments and, from the only reader of either, `root` (the checkout) and
`environment` (the process's variables, to read and to set).
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bench.errors import RecipeError
from bench.spec.workspace import Workspace

if TYPE_CHECKING:
    from bench.experiments.jobs import Jobs
    from bench.host.planning import Planned
    from bench.spec.track import NamedTrack

MOST_JOBS = 1000


def workspace(options: argparse.Namespace) -> Workspace:
    """The checkout, with the data folder asked for."""
    return Workspace(
        root=options.root, data=(getattr(options, "data", None) or options.root / ".data").absolute()
    )


def tell(line: str) -> None:
    """Progress, beside what a command prints."""
    print(line, file=sys.stderr, flush=True)


def emit(value: object) -> None:
    """One value as JSON on standard output."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2).decode())


def planned(options: argparse.Namespace, own_by_default: bool) -> Planned:
    """The plan of a command that names a recipe."""
    from bench.host.planning import plan_here

    space = workspace(options)
    return plan_here(
        options.recipe,
        options.track,
        options.device,
        space,
        options.environment,
        own_by_default,
        getattr(options, "world", None),
    )


def jobs_asked(options: argparse.Namespace, track: NamedTrack) -> Jobs:
    """How the runs of a series or a sweep are spread: --executor, --jobs, --slurm."""
    from bench.experiments.jobs import Jobs, places_of, slurm_parameters

    parameters = slurm_parameters(options.slurm)
    if options.executor == "slurm":
        return Jobs("slurm", options.jobs or MOST_JOBS, parameters)
    if parameters:
        raise RecipeError("--slurm without --executor slurm", "add it, or leave the parameters out")
    if options.jobs in (None, 1):
        return Jobs()
    from bench.host.machine import detect

    facts = detect(options.device, environment=options.environment)
    visible = options.environment.get("CUDA_VISIBLE_DEVICES")
    num_gpus = facts.device_count if facts.device_kind == "cuda" else 0
    places = places_of(visible, num_gpus, track.track.hardware.device_count) if num_gpus else []
    return Jobs("local", options.jobs, devices=places)


def before_torch(options: argparse.Namespace, deterministic: bool = False) -> None:
    """Settings that torch, CUDA and the C library read once; call before anything imports torch."""
    from bench.host.allocator import tune_allocator

    if deterministic:
        options.environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options.environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(workspace(options).compile_cache))
    tune_allocator()
