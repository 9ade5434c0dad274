"""What commands share: where things lie, the plan they were asked for, and JSON for programs.

`options` holds the parsed arguments and, from the only reader of either, `root` (the checkout) and
`environment` (the process's variables, to read and to set).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.spec.workspace import Workspace

if TYPE_CHECKING:
    from bench.host.planning import Planned


def workspace(options: argparse.Namespace) -> Workspace:
    """The checkout, with the data folder asked for."""
    return Workspace(
        root=options.root, data=(getattr(options, "data", None) or options.root / ".data").absolute()
    )


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


def before_torch(options: argparse.Namespace, deterministic: bool = False) -> None:
    """Settings that torch, CUDA and the C library read once; call before anything imports torch."""
    from bench.host.allocator import tune_allocator

    if deterministic:
        options.environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options.environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(workspace(options).compile_cache))
    tune_allocator()
