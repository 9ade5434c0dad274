"""Series: the runs of one recipe on one track over one text, one a seed. Imports no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from bench.errors import RecipeError
from bench.experiments.statistics import PUBLISHED, Prior, calibration, exceeds, pooled_variance
from bench.records.schema import Record

# Seeds of one lease scatter by 0.16 % in time (nanochat pull 807), of several by about 1 %.
PUBLISHED_TRACKS = ("gpt2-8xh100",)


class Series(NamedTuple):
    """The first run of every seed, in the seeds' order; a repeated seed changes nothing."""

    recipe: str
    track: str
    recipe_sha256: str
    corpus_sha256: str
    runs: tuple[Record, ...]

    @property
    def finished(self) -> dict[int, Record]:
        """Runs that were scored, by seed index."""
        return {
            run.identity.seed_index: run
            for run in self.runs
            if run.status == "ok" and run.scores.value is not None
        }

    @property
    def num_diverged(self) -> int:
        """Runs whose loss was not finite."""
        return sum(run.status == "diverged" for run in self.runs)

    def scores(self) -> dict[int, float]:
        """What the track scores, by seed index."""
        return {
            index: run.scores.value for index, run in self.finished.items() if run.scores.value is not None
        }

    def log_times(self) -> dict[int, float]:
        """Natural logarithm of the official seconds, by seed index."""
        return {index: math.log(run.timing.official_s) for index, run in self.finished.items()}


def first_runs(group: Sequence[Record]) -> list[Record]:
    """The first run of every seed, by seed: repeating a seed until it comes out well changes nothing."""
    by_seed: dict[int, Record] = {}
    for record in sorted(group, key=lambda record: (record.created, record.events_sha256_tip), reverse=True):
        by_seed[record.identity.seed_index] = record
    return [by_seed[seed_index] for seed_index in sorted(by_seed)]


def all_series(records: Sequence[Record]) -> list[Series]:
    """Every series of some records, ordered by track, recipe and newest run."""
    groups: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        identity = record.identity
        key = (identity.track, identity.recipe, identity.recipe_sha256, record.data.corpus_sha256)
        groups[key].append(record)
    found = [
        Series(recipe, track, sha256, corpus, tuple(first_runs(runs)))
        for (track, recipe, sha256, corpus), runs in groups.items()
    ]
    return sorted(
        found, key=lambda s: (s.track, s.recipe, max(run.created for run in s.runs), s.recipe_sha256)
    )


def two_series(records: Sequence[Record], a: str, b: str, track: str | None) -> tuple[Series, Series]:
    """The series of two recipes that may be compared: same track, same text; the newest where there are more.

    Raises:
        RecipeError: there are none.
    """
    if a == b:
        raise RecipeError(f"{a} is compared with itself", "name two recipes that have records")
    here = [s for s in all_series(records) if track in (None, s.track)]
    for name in (a, b):
        if not any(s.recipe == name for s in here):
            where = f" on track {track}" if track else ""
            known = ", ".join(sorted({s.recipe for s in here})) or "nothing"
            raise RecipeError(f"no records of {name}{where}", f"there are records of {known}")
    pairs = [
        (one, other)
        for one in here
        for other in here
        if (one.recipe, other.recipe) == (a, b) and one.track == other.track
        if one.corpus_sha256 == other.corpus_sha256
    ]
    if not pairs:
        raise RecipeError(
            f"{a} and {b} have no track and text in common", "run both on one track and one machine's text"
        )
    return max(pairs, key=lambda pair: max(run.created for series in pair for run in series.runs))


def priors(records: Sequence[Record], a: Series, b: Series) -> tuple[Prior | None, Prior | None]:
    """What the track's other recipes tell of the spread of scores and of log times: its calibration.

    The compared runs themselves have no part in it, nor has a recipe that scatters more than the others.
    A track without any has the published spread where that was published for its scale, else none. None as
    well where one of the compared scatters more than that allows.
    """
    compared = {(s.recipe, s.recipe_sha256) for s in (a, b)}
    others = [
        s
        for s in all_series(records)
        if s.track == a.track and s.corpus_sha256 == a.corpus_sha256
        if (s.recipe, s.recipe_sha256) not in compared
    ]
    source = f"{len(others)} other recipes on {a.track}"
    score = calibration([list(s.scores().values()) for s in others], source)
    times = calibration([list(s.log_times().values()) for s in others], source)
    if a.track in PUBLISHED_TRACKS and a.finished:
        metric = next(iter(a.finished.values())).scores.metric
        score, times = score or PUBLISHED[metric], times or PUBLISHED["log_time"]
    return _fitting(score, a.scores(), b.scores()), _fitting(times, a.log_times(), b.log_times())


def _fitting(prior: Prior | None, *arms: dict[int, float]) -> Prior | None:
    """The prior, unless one of the compared scatters more than it allows: then they have their own alone."""
    if prior is None or any(exceeds(*pooled_variance((list(arm.values()),)), prior) for arm in arms):
        return None
    return prior
