"""The track: what must be equal for two records to be compared, and what is scored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bench.errors import RecipeError
from bench.spec.recipe import Count, Horizon, Name, NonNegative, Positive, Recipe, Table
from bench.spec.submission import contradictions
from bench.spec.toml import check_name, decode, merge, nearest_file_hint, problem_error, read_toml


class Score(Table):
    """[score]: what ranks. `target` 0 ranks by the metric itself, else by the time of runs that reach the target."""

    metric: Literal["val_bpb", "core"] = "val_bpb"
    metric_id: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}$")] = "bpb-documents-v1"
    better: Literal["lower", "higher"] = "lower"
    rank_by: Literal["metric", "time_to_target"] = "metric"
    target: NonNegative = 0.0


class Hardware(Table):
    """[hardware]: the class a machine must measure as; cost is declared, in dollars."""

    machine_class: Annotated[str, Meta(pattern=r"^(cpu|mps|[0-9]+x[A-Za-z0-9]{1,20})$")]
    device_kind: Literal["cuda", "mps", "cpu"]
    device_count: Annotated[int, Meta(ge=1, le=4096)] = 1
    dollars_per_device_hour: NonNegative = 0.0


class Seeds(Table):
    """[seeds]: how many runs make a row, and the nonce from which the harness derives their seeds."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    nonce: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")]


class Limits(Table):
    """[limits]: what is not on the official clock may still not grow without end."""

    compile_seconds: Positive = 900.0


class Track(Table):
    """One leaderboard/tracks/NAME.toml. [scale] holds recipe tables that replace the recipe's on this track."""

    title: Annotated[str, Meta(max_length=120)]
    says: Annotated[str, Meta(max_length=600)]  # what a result means
    says_not: Annotated[str, Meta(max_length=600)]  # what it does not mean
    size: Count  # orders the tracks of a class: the largest a machine meets is its default
    score: Score
    hardware: Hardware
    seeds: Seeds
    rules: Annotated[int, Meta(ge=1)] = 1
    limits: Limits = Limits()
    scale: dict[str, Any] = {}


class NamedTrack(msgspec.Struct, frozen=True):
    """A track with its name and hash."""

    name: Name
    track: Track
    sha256: str


def load_track(name: str, folder: Path) -> NamedTrack:
    """The track `name` of `folder`, checked.

    Raises:
        RecipeError: every problem of the file at once.
    """
    path = folder / f"{check_name(name, 'track')}.toml"
    if not path.is_file():
        raise RecipeError(f"no track {name!r}", nearest_file_hint(path))
    track = decode(read_toml(path), Track, str(path))
    on_track(Recipe(), track, str(path))
    return NamedTrack(name, track, hashlib.sha256(path.read_bytes()).hexdigest())


def load_tracks(folder: Path) -> list[NamedTrack]:
    """Every track, smallest first."""
    tracks = [load_track(path.stem, folder) for path in folder.glob("*.toml")]
    return sorted(tracks, key=lambda named: (named.track.size, named.name))


def on_track(recipe: Recipe, track: Track, source: str) -> Recipe:
    """The recipe at the track's scale: the method is the recipe's, what must be equal is the track's."""
    laid_over = merge(msgspec.to_builtins(recipe), track.scale, frozenset({"horizon"}))
    scaled = decode(laid_over, Recipe, source)
    problems = contradictions(scaled)
    if problems:
        raise problem_error(source, problems)
    return scaled


def scale_fields(track: Track) -> list[str]:
    """The recipe tables' fields that the track sets, dotted."""
    return sorted(f"{table}.{field}" for table, fields in track.scale.items() for field in fields)


def seed_values(track: Track, count: int | None = None) -> list[int]:
    """The track's seeds: seed_j = first 31 bits of SHA-256(nonce || j), the same list for every recipe."""
    digests = (hashlib.sha256(f"{track.seeds.nonce}{j}".encode()).digest() for j in range(count or track.seeds.count))
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def horizon_kind(horizon: Horizon) -> str:
    """The one field that is given."""
    return next(field for field in Horizon.__struct_fields__ if getattr(horizon, field) is not None)
