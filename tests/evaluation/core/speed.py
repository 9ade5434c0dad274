"""How much faster the CORE engine answers than the plain evaluation: `make perf-core`, both in one run.

Each task's items go to the engine and then one at a time to the oracle of `plain.py`, on the same model, so
that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from tabulate import tabulate

from bench.evaluation.core.bundle import open_bundle
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.evaluate import POSITIONS_RATIO
from bench.evaluation.core.items import encoded_items
from bench.evaluation.core.loading import load_checkpoint
from bench.evaluation.core.prompts import crop
from bench.evaluation.core.tasks import read_tasks
from bench.host.device import open_device
from tests.evaluation.core.plain import answer_plainly

T = TypeVar("T")


class TaskSpeed(NamedTuple):
    """A task's items, the seconds both took over them, and how many answers differ."""

    label: str
    items: int
    tokens: int
    plain_s: float
    engine_s: float
    differ: int

    @property
    def ratio(self) -> float:
        """How many times as fast the engine is."""
        return self.plain_s / self.engine_s


def measure(options: argparse.Namespace) -> list[TaskSpeed]:
    """Both evaluations of the first items of every task."""
    bundle, device = open_bundle(options.bundle), open_device(options.device)
    loaded = load_checkpoint(options.checkpoint, device)
    max_tokens = POSITIONS_RATIO * loaded.model.config.sequence_length
    engine = Engine(loaded.model, device.torch_device, max_tokens)
    speeds = []
    for task in read_tasks(bundle):
        encoded = encoded_items(
            bundle, task, loaded.tokenizer, max_items=options.items, workers=options.threads
        )
        items = [crop(item, max_tokens, task.label)[0] for item in encoded]
        answers, engine_s = _timed(lambda items=items: engine.answer(items))
        oracle, plain_s = _timed(lambda items=items: answer_plainly(loaded.model, items, device.torch_device))
        differ = sum(a != b for a, b in zip(answers.predictions, oracle.predictions, strict=True))
        tokens = sum(len(row) for item in items for row in item.rows)
        speeds.append(TaskSpeed(task.label, len(items), tokens, plain_s, engine_s, differ))
        print(f"{task.label}: {speeds[-1].ratio:.2f}x of {plain_s:.1f} s", flush=True)
    return speeds


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def total(speeds: list[TaskSpeed]) -> TaskSpeed:
    """All tasks as one."""
    return TaskSpeed("all tasks", *(sum(column) for column in list(zip(*speeds, strict=True))[1:]))


def main() -> None:
    """Measure and print; JSON beside the table where `--out` names a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint or run folder")
    parser.add_argument("--bundle", type=Path, required=True, help="CORE in nanochat's layout")
    parser.add_argument(
        "--items", type=int, default=94, help="of each task; 94 make 2,006 of nanochat's bundle"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "mps", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speeds = measure(options)
    rows = [[*speed, speed.ratio] for speed in [*speeds, total(speeds)]]
    headers = [*TaskSpeed._fields, "ratio"]
    print(tabulate(rows, headers, floatfmt=".2f", intfmt=","))
    if options.out:
        options.out.write_text(json.dumps([dict(zip(headers, row, strict=True)) for row in rows], indent=1))


if __name__ == "__main__":
    main()
