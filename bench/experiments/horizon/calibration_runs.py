"""The short runs of a calibration: a recipe at two or three horizons, planned, run and read back.

Imports no torch. What is recorded is not run again, so a calibration that was cut off goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.errors import Diverged, Interrupted, PlanRefused, RecipeError
from bench.experiments.horizon.calibration import FALLBACK_RATIO
from bench.experiments.runner import Place, SeedRun, run_seed
from bench.experiments.series import Series, all_series
from bench.host.facts import Kind
from bench.host.planning import Planned, plan_here
from bench.records.schema import Record
from bench.records.store import read_all
from bench.spec.submission import load
from bench.spec.toml import check_name
from bench.spec.track import load_track
from bench.spec.workspace import Workspace

# Shares of the fallback's tokens: short, and a factor of 4 apart, over which a power law shows.
SHARES = (0.05, 0.1, 0.2)
LEAST_HORIZONS, MOST_HORIZONS = 2, 3


class Calibrated(NamedTuple):
    """A calibration planned: the recipe itself, and one derived recipe a horizon."""

    base: Planned
    tokens: tuple[int, ...]
    paths: tuple[Path, ...]
    plans: tuple[Planned, ...]
    seeds: int


def plan_calibration(
    recipe: Path,
    track: str | None,
    tokens: Sequence[int] | None,
    seeds: int,
    kind: Kind | None,
    space: Workspace,
    environment: Mapping[str, str],
) -> Calibrated:
    """The recipe at each horizon, written below .runs/horizon/ and planned on this machine.

    Raises:
        RecipeError: the track fixes the horizon, or not 2 or 3 horizons are given.
    """
    base = plan_here(recipe, track, kind, space, environment, own_by_default=False)
    if "horizon" in base.track.track.scale:
        raise RecipeError(
            f"track {base.track.name} fixes the horizon, so every calibration run would be the same",
            "choose a track without [scale.horizon] by --track",
        )
    chosen = sorted(set(tokens or _default_tokens(base)))
    if not LEAST_HORIZONS <= len(chosen) <= MOST_HORIZONS:
        raise RecipeError(
            f"{len(chosen)} different horizons", f"a calibration takes {LEAST_HORIZONS} or {MOST_HORIZONS}"
        )
    paths = tuple(_write(space, recipe, base.track.name, each) for each in chosen)
    plans = tuple(
        plan_here(path, base.track.name, kind, space, environment, own_by_default=False) for path in paths
    )
    if len({each.plan.tokens for each in plans}) < len(plans):
        raise RecipeError("two horizons are the same whole steps", "choose them further apart")
    return Calibrated(base, tuple(chosen), paths, plans, seeds)


def _default_tokens(base: Planned) -> list[int]:
    return [round(share * FALLBACK_RATIO * base.plan.scaling_parameters) for share in SHARES]


def _write(space: Workspace, recipe: Path, track: str, tokens: int) -> Path:
    """The derived recipe's file; equal content is left alone."""
    base = recipe.name.removesuffix(".toml")
    load(space.submissions / f"{base}.toml", space.submissions)  # the base is named, so it has to be there
    name = check_name(f"{base}-horizon-{tokens}", "recipe")
    head = {
        "title": f"{name}: a calibration run"[:120],
        "base": base,
        "track": track,
        "horizon.tokens": tokens,
    }
    path = space.runs / "horizon" / f"{name}.toml"
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in head.items())
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def require(planned: Calibrated) -> None:
    """Nothing is started of a calibration that cannot run here.

    Raises:
        PlanRefused: with the first refusal.
    """
    for each in planned.plans:
        if each.plan.refusals:
            raise PlanRefused(
                f"{each.submission.name}: {each.plan.refusals[0]}", "`bench horizon --plan` lists the runs"
            )


def run_calibration(planned: Calibrated, place: Place, tell: Callable[[str], None]) -> None:
    """Every horizon on every seed, the shortest first.

    Raises:
        Interrupted: stopped from outside; what is recorded is kept.
        PlanRefused: a run ended without a record.
    """
    require(planned)
    for seed in range(planned.seeds):
        for path, each in zip(planned.paths, planned.plans, strict=True):
            if _recorded(each, seed, place.space):
                continue
            tell(f"{each.submission.name}, seed {seed}: {each.plan.tokens:,} tokens")
            code = run_seed(SeedRun(path, each.track.name, seed), place)
            if code == Interrupted.exit_code:
                raise Interrupted("the calibration was interrupted", "the same command goes on")
            if code not in (0, Diverged.exit_code):
                raise PlanRefused(
                    f"{each.submission.name} ended with exit code {code}", "see its lines above"
                )


def _recorded(each: Planned, seed: int, space: Workspace) -> bool:
    return any(record.identity.seed_index == seed for record in _records_of(each, space))


def _records_of(each: Planned, space: Workspace) -> list[Record]:
    """Runs of this horizon under the track as it is now."""
    track = load_track(each.track.name, space.tracks)
    return [
        stored.record
        for stored in read_all(space.records)
        if stored.record.identity.recipe_sha256 == each.submission.sha256
        and stored.record.identity.track_sha256 == track.sha256
    ]


def series_of(planned: Calibrated, space: Workspace) -> list[Series]:
    """The finished series of each horizon that has one, shortest first."""
    found = []
    for each in planned.plans:
        made = all_series(_records_of(each, space))
        found += [series for series in made[-1:] if series.finished]
    return found


def calibration_table(planned: Calibrated) -> str:
    """The plan for people: a line a run, and the cost of all."""
    params = planned.base.plan.scaling_parameters
    lines = [f"{planned.base.submission.name} on {planned.base.track.name}, {params:,} scaling parameters"]
    seconds: list[float | None] = []
    for each in planned.plans:
        plan = each.plan
        shown = f"{plan.predicted_seconds:.0f} s" if plan.predicted_seconds is not None else "time not known"
        seconds.append(plan.predicted_seconds)
        lines.append(
            f"  {plan.tokens:>14,} tokens ({plan.tokens / params:.3g} a parameter), "
            f"{plan.iterations:,} steps, {shown}"
        )
        lines += [f"    refused: {refusal}" for refusal in plan.refusals]
    known = [each for each in seconds if each is not None]
    total = f"{planned.seeds * sum(known):,.0f} s" if len(known) == len(seconds) else "a time not known"
    return "\n".join([*lines, f"{len(planned.plans) * planned.seeds} runs, {total} of training"])


def as_json(planned: Calibrated) -> dict[str, object]:
    """The plan for programs."""
    return {
        "recipe": planned.base.submission.name,
        "track": planned.base.track.name,
        "scaling_parameters": planned.base.plan.scaling_parameters,
        "seeds": planned.seeds,
        "runs": [msgspec.to_builtins(each.plan) for each in planned.plans],
    }
