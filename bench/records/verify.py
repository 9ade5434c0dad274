"""Checks a stored record against everything it claims, from its files alone. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from bench.errors import RecipeError, VerificationFailed
from bench.host.clock import CATEGORIES
from bench.proving.proof import problems_of_proofs
from bench.records.events import Event, read_events
from bench.records.schema import SCHEMA, Record, encode, file_stem
from bench.records.store import StoredRecord
from bench.spec.batch_ramp import MAX_MICROS, batch_ramp, is_on
from bench.spec.recipe import Recipe
from bench.spec.submission import method_sha256
from bench.spec.toml import faults
from bench.spec.track import NamedTrack, horizon_tokens, on_track, scale_fields, seed_value
from kernels.choices import REFERENCE

LEDGER_TOLERANCE = 0.005


def verify(stored: StoredRecord, track: NamedTrack | None) -> list[str]:
    """Every reason why this record must not be believed; empty when it holds.

    Args:
        track: the track as it is now, or None when it is gone.
    """
    checks = (_canonical, _ledger, _times, _scores, _recipe, _kernels, _events)
    problems = [problem for check in checks for problem in check(stored)]
    return problems + list(_track(stored.record, track))


def require_valid(stored: StoredRecord, track: NamedTrack | None) -> None:
    """Raise VerificationFailed with the first problem."""
    problems = verify(stored, track)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationFailed(
            f"{stored.path}: {problems[0]}{more}", "records are never edited; run it again"
        )


def _canonical(stored: StoredRecord) -> Iterator[str]:
    record, path = stored.record, stored.path
    where, says = (path.parent.parent.name, path.parent.name), (record.identity.track, record.identity.recipe)
    if record.schema != SCHEMA:
        yield f"schema {record.schema}, this is {SCHEMA}"
    if path.read_bytes() != encode(record):
        yield "not the canonical bytes of its content"
    if path.stem != file_stem(record):
        yield f"the name does not follow from the content: {file_stem(record)}"
    if where != says:
        yield f"lies in {'/'.join(where)}, says {'/'.join(says)}"


def _ledger(stored: StoredRecord) -> Iterator[str]:
    timing = stored.record.timing
    total = math.fsum(timing.ledger.values())
    if sorted(timing.ledger) != sorted(CATEGORIES):
        yield "the ledger's categories are not the harness's"
    if any(seconds < 0 for seconds in timing.ledger.values()):
        yield "a ledger category is negative"
    if not abs(total - timing.wall_s) <= LEDGER_TOLERANCE * timing.wall_s:
        yield f"the ledger sums to {total:.3f} s, the process ran {timing.wall_s:.3f} s"


def _times(stored: StoredRecord) -> Iterator[str]:
    timing, shape = stored.record.timing, stored.record.shape
    official = timing.ledger.get("train", math.nan) + timing.ledger.get("data_wait", math.nan)
    if not math.isclose(official, timing.official_s, rel_tol=1e-9, abs_tol=1e-6):
        yield f"official time {timing.official_s:.3f} s is not train + data_wait, {official:.3f} s"
    cold = official + timing.ledger.get("compile", math.nan) + timing.ledger.get("warmup", math.nan)
    if not math.isclose(cold, timing.cold_s, rel_tol=1e-9, abs_tol=1e-6):
        yield f"cold time {timing.cold_s:.3f} s is not the official one + compile + warmup, {cold:.3f} s"
    if timing.mfu is not None and not 0 < timing.mfu <= 1:
        yield f"MFU {timing.mfu:.1%} is impossible"
    if not _is_growing(stored.record) and shape.tokens != shape.steps * shape.batch_tokens:
        yield f"{shape.tokens} tokens are not {shape.steps} steps of {shape.batch_tokens}"
    if stored.record.memory.peak_bytes <= 0:
        yield "peak memory is 0"


def _is_growing(record: Record) -> bool:
    """Whether the recipe's batch grows: `_scale` checks its tokens, which the track decides too."""
    try:
        recipe = msgspec.convert(record.identity.recipe_resolved, Recipe)
    except msgspec.ValidationError:
        return False  # `_recipe` names the problems
    return is_on(recipe.schedule.batch_warmup)


def _scores(stored: StoredRecord) -> Iterator[str]:
    record = stored.record
    if record.status == "ok" and None in (*record.curves.losses, *record.curves.bpbs):
        yield "a loss or score of a finished run is not finite"
    if record.status == "diverged" and record.scores.value is not None:
        yield "a diverged run has a score"
    if (
        record.status == "ok"
        and record.scores.metric == "val_bpb"
        and record.scores.value != record.scores.val_bpb
    ):
        yield "the score is not the measured val_bpb"
    yield from _core(record)
    if record.status == "ok" and record.curves.bpbs and record.curves.bpbs[-1] != record.scores.val_bpb:
        yield "the score is not the last of its curve"


def _core(record: Record) -> Iterator[str]:
    scores, core = record.scores, record.scores.core_score
    if scores.core != (core.value if core else None):
        yield "the CORE is not that of its tasks"
    if scores.metric == "core" and record.status == "ok" and scores.value != scores.core:
        yield "the score is not the measured CORE"
    if scores.metric == "core" and record.status == "ok" and core is None:
        yield "a finished run of a track that scores CORE has none"
    if core is None:
        return
    yield from core.problems()
    if scores.metric == "core" and core.metric_id != scores.metric_id:
        yield f"CORE was measured as {core.metric_id}, the record says {scores.metric_id}"
    if core.tokenizer_sha256 != record.data.tokenizer_sha256:
        yield "CORE was measured with another tokenizer"


def _recipe(stored: StoredRecord) -> Iterator[str]:
    identity = stored.record.identity
    problems = faults(identity.recipe_resolved, Recipe, "recipe.")
    if problems:
        yield f"the stored recipe is not one: {problems[0]}"
        return
    recipe = msgspec.convert(identity.recipe_resolved, Recipe)
    if method_sha256(recipe) != identity.recipe_sha256:
        yield "recipe_sha256 is not the hash of the stored recipe"
    if (identity.recipe_title, identity.own_track) != (recipe.title, recipe.track):
        yield "title or track are not the stored recipe's"


def _kernels(stored: StoredRecord) -> Iterator[str]:
    """Every fused kernel was proved on the run's device with its libraries, and was the one that ran."""
    record, facts = stored.record, stored.record.machine.facts
    versions = facts.get("versions", {})
    yield from problems_of_proofs(record.shape.kernels, record.proofs, facts.get("device_name", ""), versions)
    for kernel in record.shape.kernels:
        name = f"{kernel['op']}/{kernel['implementation']}"
        if kernel["implementation"] != REFERENCE and not record.dispatches.get(name):
            yield f"kernel {name} was chosen and never ran"
    sources = {proof.sources_sha256 for proof in record.proofs}
    if len(sources) > 1:
        yield "its proofs are of different sources"


def _events(stored: StoredRecord) -> Iterator[str]:
    record, path = stored.record, stored.events_path
    if not path.is_file():
        yield f"no event log {path.name} beside it"
        return
    try:
        events = list(read_events(path.read_bytes(), path.name))
    except VerificationFailed as error:
        yield error.message
        return
    if len(events) != record.num_events or (events and events[-1].hash != record.events_sha256_tip):
        yield "the event log is not the one the record was made from"
        return
    yield from _curves(record, events)


def _curves(record: Record, events: list[Event]) -> Iterator[str]:
    logged = [event.value.get("losses") for event in events if event.key == "step"]
    losses = [loss for some in logged if isinstance(some, list) for loss in some]
    if losses != record.curves.losses:
        yield "the loss curve is not the event log's"
    bpbs = [event.value.get("val_bpb") for event in events if event.key == "eval_accuracy"]
    if bpbs != record.curves.bpbs:
        yield "the bits per byte are not the event log's"
    cores = [event.value.get("value") for event in events if event.key == "core"]
    if cores != ([] if record.scores.core is None else [record.scores.core]):
        yield "the CORE is not the event log's"
    if record.status == "ok" and len(losses) != record.shape.steps:
        yield f"{len(losses)} losses for {record.shape.steps} steps"


def _track(record: Record, named: NamedTrack | None) -> Iterator[str]:
    identity = record.identity
    if named is None:
        yield f"no track {identity.track!r}"
        return
    track = named.track
    if identity.track_sha256 != named.sha256:
        yield f"measured under another version of track {named.name}"
        return
    if record.machine.machine_class != track.hardware.machine_class:
        yield f"machine class {record.machine.machine_class}, the track's is {track.hardware.machine_class}"
    if (record.scores.metric, record.scores.metric_id) != (track.score.metric, track.score.metric_id):
        yield f"metric {record.scores.metric_id}, the track's is {track.score.metric_id}"
    if identity.rules != track.rules:
        yield f"run under rules v{identity.rules}, the track's are v{track.rules}"
    if identity.seed_index < 0 or identity.seed != seed_value(track, identity.seed_index):
        yield f"seed {identity.seed} is not seed {identity.seed_index} of the track"
    if identity.track_fields != scale_fields(track):
        yield "the fields set by the track are not the track's"
    yield from _scale(record, named)
    if record.timing.ledger.get("compile", 0.0) > track.limits.compile_seconds:
        limit = track.limits.compile_seconds
        yield f"compiled for {record.timing.ledger['compile']:.0f} s, the track allows {limit:.0f}"


def _scale(record: Record, named: NamedTrack) -> Iterator[str]:
    """What was trained, where the recipe on this track says it in a field."""
    try:
        recipe = on_track(msgspec.convert(record.identity.recipe_resolved, Recipe), named.track, named.name)
    except (RecipeError, msgspec.ValidationError):
        return  # `_recipe` names the problems
    shape, given = record.shape, recipe.horizon.iterations
    expected = {
        "depth": (shape.depth, recipe.model.depth),
        "sequence_length": (shape.sequence_length, recipe.model.sequence_length),
        "vocab_size": (record.data.vocab_size, recipe.model.vocab_size),
        "dataset": (record.data.dataset, recipe.data.dataset),
        "compute_dtype": (shape.compute_dtype, recipe.precision.compute),
    }
    if recipe.batch.tokens != "auto":
        expected["batch_tokens"] = (shape.batch_tokens, recipe.batch.tokens)
    if is_on(recipe.schedule.batch_warmup):
        if (taken := _growing_steps(record, recipe)) is None:
            yield "the batch grows, but not in whole micro-batches"
            return
        given, tokens = taken
        expected["tokens"] = (shape.tokens, tokens)
    if given is not None and record.status == "ok":
        expected["steps"] = (shape.steps, given)
    for field, (found, asked) in expected.items():
        if found != asked:
            yield f"{field} is {found}, the recipe on this track asks for {asked}"


def _growing_steps(record: Record, recipe: Recipe) -> tuple[int, int] | None:
    """Steps of the whole run and tokens of those taken where the batch grows; None where it cannot."""
    shape = record.shape
    if not 1 < shape.accumulation <= MAX_MICROS or shape.batch_tokens < shape.accumulation:
        return None
    sizes = shape.scaling_parameters, max(shape.flops_per_token, 1), shape.batch_tokens
    num_batches = (horizon_tokens(recipe.horizon, *sizes) or 0) // shape.batch_tokens
    micro_tokens = shape.batch_tokens // shape.accumulation
    ramp, steps = batch_ramp(recipe.schedule.batch_warmup, num_batches, shape.accumulation, micro_tokens)
    return steps, ramp.micro_index(shape.steps) * micro_tokens
