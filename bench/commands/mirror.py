"""The command that shows a run in a tracker: mirror."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.shared import workspace
from bench.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.records.events import Event


def mirror(options: argparse.Namespace) -> None:
    """`bench mirror`."""
    from bench.records.mirror import send
    from bench.records.trackers import DEFAULTS

    if options.tracker is None:
        raise RecipeError("no tracker is named", "--tracker wandb, trackio or tensorboard")
    for name, value in DEFAULTS.items():
        options.environment.setdefault(name, value)
    is_live = options.live is not None
    name, events, config = _live(options.run, options.live) if is_live else _finished(options.run)
    count = send(events, options.tracker, name, workspace(options).data / "trackers", config)
    print(f"{name}: {count} events in {options.tracker}")


def _finished(path: Path) -> tuple[str, Iterable[Event], dict[str, Any]]:
    """A record's run, or what a run's folder holds of one."""
    from bench.records.events import read_events
    from bench.records.store import read

    if path.suffix == ".json":
        stored = read(path)
        identity, log = stored.record.identity, stored.events_path
        name = f"{identity.track}/{identity.recipe}/{identity.seed_index}"
        config = {"track": identity.track, "recipe": identity.recipe_resolved}
    else:
        log, config = path / "events.jsonl", {}
        name = _name(path)
    try:
        return name, read_events(log.read_bytes(), log.name), config
    except OSError as error:
        raise DataError(f"{log}: {error.strerror}", "name a record, or a run's folder under .runs") from error


def _live(folder: Path, since_ns: int) -> tuple[str, Iterable[Event], dict[str, Any]]:
    """A run under way, until standard input ends; everything else on the machine goes first."""
    from bench.records.follow import follow

    os.nice(19)
    over = threading.Event()

    def wait_for_the_end() -> None:
        while os.read(0, 4096):
            pass
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    return _name(folder), follow(folder / "events.jsonl", over.wait, since_ns), {}


def _name(folder: Path) -> str:
    return "/".join(folder.absolute().parts[-3:])
