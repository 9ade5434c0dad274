"""`bench run --seeds N`: one recipe on several seeds, each a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.errors import Diverged, Interrupted
from bench.experiments.jobs import Jobs, carry_out, starter
from bench.experiments.runner import FINAL, Place, SeedRun
from bench.records.store import recorded_seeds


class Ended(NamedTuple):
    """A seed's run, its exit code, and what it printed as JSON, if it was asked to."""

    seed_index: int
    exit_code: int
    run: msgspec.Raw | None


def run_seeds(
    recipe: Path,
    track: str,
    seed_indices: Sequence[int],
    place: Place,
    jobs: Jobs,
    tell: Callable[[str], None],
    *,
    as_json: bool = False,
) -> list[Ended]:
    """A run a seed, a failed one tried once more; a second failure ends the series.

    A divergence ends nothing: it is recorded, and the other seeds say how common it is. Runs side by side
    write their lines to logs below .runs/jobs.
    """
    folder = place.space.runs / "jobs" / recipe.stem
    start = starter(jobs, place, folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        SeedRun(
            recipe=recipe,
            track=track,
            seed_index=index,
            log=None if jobs.is_inline else folder / f"{track}-{index}.log",
            json=folder / f"{track}-{index}.json" if as_json else None,
        )
        for index in seed_indices
    ]
    ended: list[Ended] = []

    def is_final(run: SeedRun, code: int) -> bool:
        return code in FINAL or run.seed_index in recorded_seeds(place.space.records, track, recipe.stem)

    with closing(carry_out(iter(runs), start, jobs.num_at_once, is_final, tell)) as under_way:
        for run, code in under_way:
            ended.append(Ended(run.seed_index, code, _printed(run, code)))
            if code not in (0, Diverged.exit_code):
                break
    return sorted(ended, key=lambda one: one.seed_index)


def worst_code(ended: Sequence[Ended]) -> int:
    """The exit code of the series: of a failure, else of a divergence, else 0."""
    codes = [one.exit_code for one in ended]
    failures = [code for code in codes if code not in (0, Diverged.exit_code)]
    if not failures:
        return max(codes, default=0)
    return failures[0] if failures[0] > 0 else Interrupted.exit_code  # killed: it resumes as one interrupted


def _printed(run: SeedRun, code: int) -> msgspec.Raw | None:
    text = run.json.read_bytes() if run.json is not None and code == 0 else b""
    return msgspec.Raw(text) if text else None
