"""Trackers that a run's events may be shown in: wandb, trackio and tensorboard, each if it is installed.

None is a dependency and none is imported before its name is asked for. By default none logs in, asks or
leaves the machine: `DEFAULTS` are the variables that see to it, and whoever sets one of them means it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.errors import DataError, VerificationFailed
from bench.records.events import Event

PROJECT = "speedrun-bench"
DEFAULTS = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
Config = Mapping[str, Any]


class Tracker(NamedTuple):
    """An open tracker: what takes the figures of a step, and what ends it."""

    log: Callable[[int, Mapping[str, float]], object]
    finish: Callable[[], object]


class Point(NamedTuple):
    """Figures of one optimizer step."""

    step: int
    figures: dict[str, float]


class _Steps(msgspec.Struct, frozen=True):
    step: int
    losses: list[float]
    official_s: float
    learning_rates: list[float] = []


class _Score(msgspec.Struct, frozen=True):
    step: int
    val_bpb: float


def points(event: Event) -> Iterator[Point]:
    """What an event has to say of steps.

    Raises:
        VerificationFailed: it is not what `bench run` writes.
    """
    try:
        if event.key == "step":
            yield from _of_steps(msgspec.convert(event.value, _Steps))
        elif event.key == "eval_accuracy":
            score = msgspec.convert(event.value, _Score)
            yield Point(score.step, {"val_bpb": score.val_bpb})
    except msgspec.ValidationError as error:
        raise VerificationFailed(f"event {event.key!a}: {error}", "the log was edited") from error


def _of_steps(done: _Steps) -> Iterator[Point]:
    """A loss for each of the steps, and for the last of them how long it all took so far."""
    first = done.step - len(done.losses) + 1
    for at, loss in enumerate(done.losses):
        figures = {"loss": loss}
        if at < len(done.learning_rates):
            figures["learning_rate_factor"] = done.learning_rates[at]
        if first + at == done.step:
            figures["official_s"] = done.official_s
        yield Point(first + at, figures)


def open_tracker(name: str, run: str, folder: Path, config: Config) -> Tracker:
    """A tracker under its name in `OPENERS`.

    Args:
        run: the run's name there.
        folder: for files of trackers that let one choose.

    Raises:
        DataError: it is not installed.
    """
    try:
        return OPENERS[name](run, folder / name, config)
    except ModuleNotFoundError as error:
        raise DataError(f"{name}: {error}", f"python -m pip install {name}") from error


def _open_wandb(run: str, folder: Path, config: Config) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    wandb = import_module("wandb")
    identity = run.replace("/", "-")  # a resumed run goes on under it
    opened = wandb.init(
        project=PROJECT, name=run, id=identity, resume="allow", dir=str(folder), config=dict(config)
    )
    return Tracker(lambda step, figures: opened.log(dict(figures), step=step), opened.finish)


def _open_trackio(run: str, folder: Path, config: Config) -> Tracker:
    trackio = import_module("trackio")  # it keeps its files where its own dashboard looks for them
    trackio.init(project=PROJECT, name=run, resume="allow", config=dict(config))
    return Tracker(lambda step, figures: trackio.log(dict(figures), step=step), trackio.finish)


def _open_tensorboard(run: str, folder: Path, config: Config) -> Tracker:
    """By the package's own writer: torch's would import torch."""
    writer_of = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
    event_of = import_module("tensorboard.compat.proto.event_pb2").Event
    summary_of = import_module("tensorboard.compat.proto.summary_pb2").Summary
    writer = writer_of(str(folder / run))

    def log(step: int, figures: Mapping[str, float]) -> None:
        values = [summary_of.Value(tag=name, simple_value=figure) for name, figure in figures.items()]
        writer.add_event(event_of(step=step, summary=summary_of(value=values)))

    return Tracker(log, writer.close)


OPENERS: dict[str, Callable[[str, Path, Config], Tracker]] = {
    "wandb": _open_wandb,
    "trackio": _open_trackio,
    "tensorboard": _open_tensorboard,
}
