"""The track: what must be equal for two records to be compared, and what is scored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bench.errors import RecipeError
from bench.spec.fields import Count, Line, Name, NonNegative, Positive, Table, Text
from bench.spec.recipe import DESCRIPTIVE, Horizon, Recipe
from bench.spec.submission import contradictions
from bench.spec.toml import check_name, decode, faults, merge, nearest_file_hint, parse_toml, problem_error

DOCUMENTS_METRIC = "bpb-documents-v1"  # every byte of an explicit list of documents


class Score(Table, frozen=True, kw_only=True):
    """[score]: what ranks: the metric itself, or the time of the runs that reach its `target` (0: none)."""

    metric: Literal["val_bpb", "core"] = "val_bpb"
    metric_id: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}\Z")] = DOCUMENTS_METRIC
    better: Literal["lower", "higher"] = "lower"
    rank_by: Literal["metric", "time_to_target"] = "metric"
    target: NonNegative = 0.0
    # How far the val_bpb of a systems-only change may lie from its base's. The default suits GPT-2's scale:
    # two thirds of the deviation of nanochat's val_bpb over 20 seeds, 2.3e-4 (its pull 807).
    equivalence: Positive = 1.5e-4


class Hardware(Table, frozen=True, kw_only=True):
    """[hardware]: the class a machine must measure as; cost is declared, in dollars.

    One process trains on each of `device_count` devices; on a CPU they share its cores.
    """

    machine_class: Annotated[str, Meta(pattern=r"^(cpu|mps|[0-9]+x[A-Za-z0-9]{1,20})\Z")]
    device_kind: Literal["cuda", "mps", "cpu"]
    device_count: Annotated[int, Meta(ge=1, le=4096)] = 1
    dollars_per_device_hour: NonNegative = 0.0


class Seeds(Table, frozen=True, kw_only=True):
    """[seeds]: how many runs make a row, and the nonce from which the harness derives their seeds."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    nonce: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]


class Limits(Table, frozen=True, kw_only=True):
    """[limits]: what is not on the official clock may still not grow without end."""

    compile_seconds: Positive = 900.0
    parameters: Count | None = None  # of the whole model, embeddings included
    peak_bytes: Count | None = None  # of a device


class Track(Table, frozen=True, kw_only=True):
    """One leaderboard/tracks/NAME.toml. [scale] holds recipe tables laid over the recipe's on this track."""

    title: Line
    says: Text  # what a result means
    says_not: Text  # what it does not mean
    size: Count  # orders the tracks of a class: the largest a machine meets is its default
    score: Score
    hardware: Hardware
    seeds: Seeds
    rules: Annotated[int, Meta(ge=1)] = 1
    limits: Limits = Limits()
    scale: dict[str, Any] = msgspec.field(default_factory=dict)


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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: {(error.strerror or str(error)).lower()}", "tracks must be readable"
        ) from error
    return NamedTrack(name, parse_track(data, str(path)), hashlib.sha256(data).hexdigest())


def parse_track(data: bytes, source: str) -> Track:
    """The track in a file's bytes; every problem of the file at once, those of its [scale] among them."""
    tables = parse_toml(data, source)
    problems = faults(tables, Track, "")
    if isinstance(tables.get("scale"), dict):
        problems += _scale_faults(tables["scale"])
    if problems:
        raise problem_error(source, problems)
    track = decode(tables, Track, source)
    problems = _incoherences(track)
    if problems:
        raise problem_error(source, problems)
    on_track(Recipe(), track, source)
    return track


def _scale_faults(scale: dict[str, Any]) -> list[str]:
    found = faults(scale, Recipe, "scale.")
    told = [key for key in scale if key in DESCRIPTIVE]
    return found + [
        f"scale.{key}: a track scales tables of the method, this describes a recipe" for key in told
    ]


def _incoherences(track: Track) -> list[str]:
    """What each field allows alone but not together."""
    hardware, score, problems = track.hardware, track.score, []
    count, is_cuda, _ = hardware.machine_class.partition("x")
    if (hardware.device_kind == "cuda") != bool(is_cuda) or not (is_cuda or hardware.device_kind == count):
        problems.append(
            f"hardware.device_kind = {hardware.device_kind}: the class is {hardware.machine_class}"
        )
    elif hardware.device_kind != "cpu" and hardware.device_count != (int(count) if is_cuda else 1):
        problems.append(
            f"hardware.device_count = {hardware.device_count}: the class is {hardware.machine_class}"
        )
    if score.rank_by == "time_to_target" and not score.target:
        problems.append("score.target: missing, runs are ranked by the time to it")
    if score.metric == "val_bpb" and score.metric_id != DOCUMENTS_METRIC:
        problems.append(f"score.metric_id = {score.metric_id}: val_bpb is measured as {DOCUMENTS_METRIC}")
    return problems


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
    return [seed_value(track, j) for j in range(track.seeds.count if count is None else count)]


def seed_value(track: Track, index: int) -> int:
    """The seed of one index, from 0."""
    assert index >= 0, index
    return int.from_bytes(hashlib.sha256(f"{track.seeds.nonce}{index}".encode()).digest()[:4], "big") >> 1


def horizon_kind(horizon: Horizon) -> str:
    """The one field that is given."""
    return next(field for field in Horizon.__struct_fields__ if getattr(horizon, field) is not None)


def horizon_tokens(
    horizon: Horizon, scaling_parameters: int, flops_per_token: int, batch_tokens: int
) -> int | None:
    """Tokens that a horizon asks for, before whole steps; None where its clock decides."""
    if horizon.param_data_ratio is not None:
        return int(horizon.param_data_ratio * scaling_parameters)
    if horizon.iterations is not None:
        return horizon.iterations * batch_tokens
    if horizon.tokens is not None:
        return horizon.tokens
    return None if horizon.flops is None else round(horizon.flops / flops_per_token)
