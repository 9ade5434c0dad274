"""Whether a systems-only change computes what its base computes: two one-sided tests over pairs of seeds.

A seed draws the same weights and the same batches for both recipes, so its two runs are a pair, and what
their scores differ by is the change's and not the seed's. The claim holds where the 90 % interval of the mean
difference of val_bpb lies within the track's margin, which rejects both "lower by the margin" and "higher by
it" at 5 % (Schuirmann 1987, doi 10.1007/BF01068419). Imports no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from bench.errors import BenchError
from bench.records.schema import Record
from bench.spec.claim import beyond_systems
from bench.spec.recipe import Recipe
from bench.spec.track import Track, on_track

# 95 % quantiles of Student's t by degrees of freedom; the last one serves for more of them, to the safe side.
T_95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
MAX_NAMED = 3
Verdict = Literal["equivalent", "not shown", "another method", "waiting", "not judged"]


class Equivalence(NamedTuple):
    """A systems-only claim, judged; `says` is one line for people."""

    base: str
    verdict: Verdict
    says: str

    @property
    def short(self) -> str:
        """The verdict without its figures."""
        return f"systems-only against {self.base}: {self.verdict}"


def equivalence(
    series: Sequence[Record], field: Sequence[Sequence[Record]], track: Track
) -> Equivalence | None:
    """The claim of a recipe's runs, judged by the other runs of its track over its text; None without one.

    Args:
        series: the recipe's runs, by seed, of one seed the oldest first.
        field: every recipe's runs in the same order, this one's among them.
    """
    claimed = series[0].identity.recipe_resolved.get("systems_only")
    if not isinstance(claimed, str):
        return None
    bases = [other for other in field if other is not series and other[0].identity.recipe == claimed]
    verdict, told = _judged(series, bases, track)
    return Equivalence(claimed, verdict, f"systems-only against {claimed}: {told}")


def _judged(series: Sequence[Record], bases: Sequence[Sequence[Record]], track: Track) -> tuple[Verdict, str]:
    mine = _recipe(series[0], track)
    found = [(base, recipe) for base in bases if (recipe := _recipe(base[0], track)) is not None]
    if mine is None or not found:
        return "waiting", "it has no run here"
    if mine.horizon.seconds is not None:
        return "not judged", "the horizon is a clock, and a faster step trains longer"
    beyond = {at: beyond_systems(recipe, mine) for at, (_, recipe) in enumerate(found)}
    alike = [base for at, (base, _) in enumerate(found) if not beyond[at]]
    if not alike:
        fields = min(beyond.values(), key=len)
        more = f" and {len(fields) - MAX_NAMED} more" if len(fields) > MAX_NAMED else ""
        return "another method", f"it differs in {', '.join(fields[:MAX_NAMED])}{more}"
    return _tested(_first_runs(series), _first_runs(alike[0]), track)


def _recipe(record: Record, track: Track) -> Recipe | None:
    """What a record's recipe asks for on the track; what it cannot be is another rule's to say."""
    try:
        return on_track(msgspec.convert(record.identity.recipe_resolved, Recipe), track, "the stored recipe")
    except (msgspec.ValidationError, BenchError):
        return None


def _first_runs(series: Sequence[Record]) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for record in series:
        found.setdefault(record.identity.seed_index, record)
    return found


def _tested(mine: dict[int, Record], base: dict[int, Record], track: Track) -> tuple[Verdict, str]:
    """The verdict of the seeds that the track asks for: neither fewer nor, after a look, more."""
    seeds = range(track.seeds.count)
    missing = [seed for seed in seeds if seed not in mine or seed not in base]
    if missing:
        return "waiting", f"seeds {', '.join(map(str, missing))} have no pair of runs"
    pairs = [(mine[seed], base[seed]) for seed in seeds]
    gaps = [
        a.scores.val_bpb - b.scores.val_bpb
        for a, b in pairs
        if a.scores.val_bpb is not None and b.scores.val_bpb is not None
    ]
    if len(gaps) < len(pairs) or not all(map(math.isfinite, gaps)):
        return "not shown", "a seed of the two has no score"
    if all(a.scores.weights_sha256 == b.scores.weights_sha256 for a, b in pairs) and not any(gaps):
        return "equivalent", f"the same weights, bit for bit, with {_seeds(len(gaps))}"
    if len(gaps) < 2:
        return "not shown", "one pair of seeds tells no spread"
    mean, half = statistics.fmean(gaps), half_width(gaps)
    verdict: Verdict = "equivalent" if abs(mean) + half < track.score.equivalence else "not shown"
    told = f"val_bpb {mean:+.6f} ± {half:.6f} over {_seeds(len(gaps))}"
    return verdict, f"{verdict}, {told}, the margin is {track.score.equivalence:g}"


def half_width(gaps: Sequence[float]) -> float:
    """Half of the 90 % interval of their mean: each of its ends is a one-sided test at 5 %."""
    mean, degrees = statistics.fmean(gaps), len(gaps) - 1
    squares = math.fsum((gap - mean) * (gap - mean) for gap in gaps)
    return T_95[min(degrees, len(T_95)) - 1] * math.sqrt(squares / degrees / len(gaps))


def _seeds(count: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''} of seeds"
