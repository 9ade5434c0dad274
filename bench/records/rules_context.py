"""What a rule may look at besides the record: its track, its recipe, its event log, the records beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bench.errors import BenchError, VerificationFailed
from bench.records.events import Event, read_events
from bench.records.samples import alike, sample_of
from bench.records.schema import Record, encode
from bench.records.store import StoredRecord
from bench.spec.batch_ramp import MAX_MICROS, BatchRamp, batch_ramp, constant, is_on
from bench.spec.plan import model_config
from bench.spec.recipe import Recipe
from bench.spec.submission import method_sha256
from bench.spec.toml import faults
from bench.spec.track import NamedTrack, Track, horizon_tokens, on_track
from model.config import ModelConfig
from model.flops import flops_per_token, scaling_parameters

Series = Sequence[Record]
SeriesKey = tuple[str, str, str, str]
TokenizerKey = tuple[str, str, int, int]


class Context(NamedTuple):
    """Read once for all rules of a record; None where missing or wrong, which a rule of its own says."""

    named: NamedTrack | None  # the track as it is now
    track: Track | None  # the same where the record was measured under this version of it
    encoded: bytes  # the record's canonical bytes
    recipe: Recipe | None
    recipe_sha256: str  # of its method
    recipe_problem: str
    asked: Recipe | None  # the recipe on the track
    config: ModelConfig | None  # of the model it asks for
    events: tuple[Event, ...] | None
    log_problem: str
    series: Series  # the runs of this recipe on this track over this text, this one among them
    field: Sequence[Series]  # all series of this track over this text
    alike: Mapping[int, Sequence[str]]  # by a series' id: recipes that it is not told apart from
    reference: Record  # the oldest record of the field
    same_vocabulary: Record  # the oldest of those that ask for the same tokenizer
    same_log: Sequence[Record]  # all whose event log ends as this one's, this one among them


class Schedule(NamedTuple):
    """How a run's horizon falls into steps: micro-batches of each, and their number, None under a clock."""

    ramp: BatchRamp
    steps: int | None


def schedule_of(record: Record, context: Context) -> Schedule | None:
    """The steps that recipe and track ask for; None where the batch cannot grow as asked."""
    shape, asked, config = record.shape, context.asked, context.config
    micros = max(shape.accumulation, 1)
    if asked is None or config is None:
        return Schedule(constant(micros), None)
    sizes = scaling_parameters(config), flops_per_token(config), shape.batch_tokens
    tokens = horizon_tokens(asked.horizon, *sizes)
    num_batches = None if tokens is None else tokens // max(shape.batch_tokens, 1)
    if not is_on(asked.schedule.batch_warmup):
        return Schedule(constant(micros), num_batches)
    if num_batches is None or not 1 < micros <= MAX_MICROS or shape.batch_tokens < micros:
        return None
    micro_tokens = shape.batch_tokens // micros
    return Schedule(*batch_ramp(asked.schedule.batch_warmup, num_batches, micros, micro_tokens))


def age(record: Record) -> tuple[str, str]:
    """Sorts records by when they were made."""
    return record.created, record.events_sha256_tip


def series_key(record: Record) -> SeriesKey:
    """Records of one key are one row of the board."""
    identity = record.identity
    return identity.track, record.data.corpus_sha256, identity.recipe, identity.recipe_sha256


def tokenizer_key(record: Record, asked: Recipe | None) -> TokenizerKey | None:
    """What a tokenizer follows from: a corpus, how much of it is looked at, how many tokens are wanted.

    Args:
        asked: the recipe on the track; None where the record is of another version of it.
    """
    if asked is None:
        return None
    identity, data = record.identity, record.data
    return identity.track, data.corpus_sha256, data.vocab_size, asked.data.tokenizer_chars


def contexts(
    stored: Iterable[StoredRecord], tracks: Mapping[str, NamedTrack]
) -> list[tuple[StoredRecord, Context]]:
    """Each record with its context, the others being its neighbours."""
    listed, resolve = list(stored), _Resolver()
    beside = _neighbours([one.record for one in listed], tracks, resolve)
    return [(one, _context(one, tracks.get(one.record.identity.track), beside, resolve)) for one in listed]


def _its_own(record: Record, named: NamedTrack | None) -> Track | None:
    """The track, where the record was measured under the version that there is now."""
    return named.track if named is not None and named.sha256 == record.identity.track_sha256 else None


class _Neighbours(NamedTuple):
    series: Mapping[SeriesKey, Series]
    fields: Mapping[tuple[str, str], Sequence[Series]]
    alike: Mapping[tuple[str, str], Mapping[int, Sequence[str]]]
    oldest: Mapping[tuple[str, str], Record]
    tokenizers: Mapping[TokenizerKey, Record]  # the oldest record of each
    logs: Mapping[str, Sequence[Record]]


def _neighbours(
    records: Sequence[Record], tracks: Mapping[str, NamedTrack], resolve: _Resolver
) -> _Neighbours:
    groups: dict[SeriesKey, list[Record]] = defaultdict(list)
    logs: dict[str, list[Record]] = defaultdict(list)
    tokenizers: dict[TokenizerKey, Record] = {}
    for record in records:
        asked = resolve(record, _its_own(record, tracks.get(record.identity.track))).asked
        if (wanted := tokenizer_key(record, asked)) is not None:
            tokenizers[wanted] = min(tokenizers.get(wanted, record), record, key=age)
        groups[series_key(record)].append(record)
        logs[record.events_sha256_tip].append(record)
    fields: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for key, group in sorted(groups.items()):
        group.sort(key=lambda record: (record.identity.seed_index, *age(record)))
        fields[key[:2]].append(group)
    oldest = {key: min((one for series in field for one in series), key=age) for key, field in fields.items()}
    told = {key: _alike(field, tracks[key[0]].track) for key, field in fields.items() if key[0] in tracks}
    return _Neighbours(groups, fields, told, oldest, tokenizers, logs)


def _alike(field: Sequence[Series], track: Track) -> dict[int, list[str]]:
    """Once for a whole field: every series of it is compared with every other."""
    found = [(id(series), sample) for series in field if (sample := sample_of(series, track)) is not None]
    return dict(zip((at for at, _ in found), alike([sample for _, sample in found]), strict=True))


def _context(
    stored: StoredRecord, named: NamedTrack | None, beside: _Neighbours, resolve: _Resolver
) -> Context:
    track = _its_own(stored.record, named)
    resolved = resolve(stored.record, track)
    key, wanted = series_key(stored.record), tokenizer_key(stored.record, resolved.asked)
    events, log_problem = _events(stored)
    return Context(
        named=named,
        track=track,
        encoded=encode(stored.record),
        recipe=resolved.recipe,
        recipe_sha256=resolved.sha256,
        recipe_problem=resolved.problem,
        asked=resolved.asked,
        config=resolved.config,
        events=events,
        log_problem=log_problem,
        series=beside.series[key],
        field=beside.fields[key[:2]],
        alike=beside.alike.get(key[:2], {}) if track is not None else {},
        reference=beside.oldest[key[:2]],
        same_vocabulary=stored.record if wanted is None else beside.tokenizers[wanted],
        same_log=beside.logs[stored.record.events_sha256_tip],
    )


class _Resolved(NamedTuple):
    recipe: Recipe | None
    sha256: str
    problem: str
    asked: Recipe | None
    config: ModelConfig | None


class _Resolver:
    """Stored recipes as values; the same tables on the same track, as the runs of a row have them, once."""

    def __init__(self) -> None:
        self.found: dict[tuple[bytes, int], _Resolved] = {}

    def __call__(self, record: Record, track: Track | None) -> _Resolved:
        tables = record.identity.recipe_resolved
        key = msgspec.json.encode(tables), id(track)
        if key not in self.found:
            recipe, problem = _recipe(tables)
            sha256 = method_sha256(recipe) if recipe else ""
            self.found[key] = _Resolved(recipe, sha256, problem, *_asked(recipe, track))
        return self.found[key]


def _recipe(tables: dict[str, Any]) -> tuple[Recipe | None, str]:
    try:
        return msgspec.convert(tables, Recipe), ""
    except msgspec.ValidationError:
        return None, faults(tables, Recipe, "recipe.")[0]


def _asked(recipe: Recipe | None, track: Track | None) -> tuple[Recipe | None, ModelConfig | None]:
    """The recipe at the track's scale, and its model; a recipe that cannot stand there is a rule's to say."""
    if recipe is None or track is None:
        return None, None
    try:
        asked = on_track(recipe, track, "the stored recipe")
    except BenchError:
        return None, None
    return asked, model_config(asked)


def _events(stored: StoredRecord) -> tuple[tuple[Event, ...] | None, str]:
    path, record = stored.events_path, stored.record
    try:
        events = tuple(read_events(path.read_bytes(), path.name))
    except OSError:
        return None, f"no event log {path.name} beside it"
    except VerificationFailed as error:
        return None, error.message
    if len(events) != record.num_events or (events and events[-1].hash != record.events_sha256_tip):
        return None, "the event log is not the one the record was made from"
    return events, ""
