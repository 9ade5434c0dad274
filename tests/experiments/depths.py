"""Runs of two methods at several depths, as a sweep of the CPU's miniseries leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.experiments.depth_gate import DepthGate, depth_difference, gate_depths
from bench.experiments.statistics import difference
from bench.records.schema import Record
from bench.records.store import write_once
from bench.spec.plan import model_config
from bench.spec.recipe import Recipe
from bench.spec.track import load_track, on_track, scale_fields
from model.flops import scaling_parameters
from tests.experiments.runs import changed, run_of
from tests.records.sample import ROOT, quick_recipe, sample

TRACK = load_track("cpu-miniseries", ROOT / "leaderboard" / "tracks")
DEPTHS = (4, 6, 8)
SCATTER = (0.0, 0.004, -0.003)  # of seeds, the same for both
OWN = (0.0005, -0.0004, 0.0)  # of the candidate's seeds


def recipe_at(depth: int, z_loss: float) -> Recipe:
    """Quick at this depth, with or without the candidate's lever."""
    tables = msgspec.to_builtins(quick_recipe())
    tables["model"] |= {"depth": depth}
    tables["optimizer"]["muon"] |= {"lr": 0.06 + z_loss}
    return msgspec.convert(tables, Recipe)


BASELINE = run_of("quick", 0, 2.5, recipe=recipe_at(4, 0.0))
CANDIDATE = run_of("new", 0, 2.4, recipe=recipe_at(4, 0.01))


def run_at(depth: int, seed: int, bpb: float | None, lever: float, seconds: float = 30.0) -> Record:
    """A run of a sweep's cell on the miniseries' track."""
    recipe = recipe_at(depth, lever)
    made = run_of(f"cell-{lever:g}-{depth}", seed, bpb, seconds, recipe=recipe)
    made = changed(made, "identity", track=TRACK.name, track_fields=scale_fields(TRACK.track))
    parameters = scaling_parameters(model_config(on_track(recipe, TRACK.track, "test")))
    return changed(made, "shape", depth=depth, scaling_parameters=parameters)


def arm(gains: Sequence[float], lever: float, depths: Sequence[int] = DEPTHS, **others: Any) -> list[Record]:
    """Three seeds at each depth."""
    own = OWN if lever else (0.0, 0.0, 0.0)
    return [
        run_at(depth, seed, 2.5 - 0.1 * place - gain + SCATTER[seed] + own[seed], lever, **others)
        for place, (depth, gain) in enumerate(zip(depths, gains, strict=True))
        for seed in range(3)
    ]


def store(records: Path, runs: Sequence[Record]) -> None:
    """Write runs as files; nothing here looks into their logs."""
    for run in runs:
        write_once(records, run, sample()[1])


def judged(*deltas: float) -> DepthGate:
    """The gate on these differences at d4, d6 and d8, each known to 0.001."""
    depths = [
        depth_difference(
            difference("paired t", delta, 0.001, 40.0, sigma=0.00122, counts=(3, 3)),
            depth=depth,
            parameters=depth**3 * 10**5,
            flops_ratio=1.0,
            time_ratio=1.0,
        )
        for depth, delta in zip(DEPTHS, deltas, strict=True)
    ]
    return gate_depths(depths, [], 8, 8**3 * 10**5)
