"""Rules about what a record is: its file, its names and hashes, its track, seed and machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bench.records.rules_context import Context
from bench.records.schema import SCHEMA, file_stem
from bench.records.store import StoredRecord
from bench.spec.track import scale_fields, seed_value

# The longest preset horizon, nanochat's 16,704 steps, each logged, makes 0.5 MB of curves and 5 MB of log.
MAX_RECORD_BYTES = 8 * 2**20
MAX_LOG_BYTES = 32 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}|unknown")
_CREATED = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")


def schema(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The record is of this schema."""
    if stored.record.schema != SCHEMA:
        yield f"schema {stored.record.schema}, this is {SCHEMA}"


def canonical_bytes(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The file holds the one byte string of its content."""
    if stored.path.read_bytes() != context.encoded:
        yield "not the canonical bytes of its content"


def file_name(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The file's name and folder follow from its content."""
    record, path = stored.record, stored.path
    where, says = (path.parent.parent.name, path.parent.name), (record.identity.track, record.identity.recipe)
    stem = file_stem(record, context.encoded)
    if path.stem != stem:
        yield f"the name does not follow from the content: {stem}"
    if where != says:
        yield f"lies in {'/'.join(where)}, says {'/'.join(says)}"


def file_size(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Record and log stay below what the longest honest run needs."""
    for path, most in ((stored.path, MAX_RECORD_BYTES), (stored.events_path, MAX_LOG_BYTES)):
        if path.is_file() and path.stat().st_size > most:
            yield f"{path.name} has {path.stat().st_size:,} bytes, at most {most:,} are allowed"


def recipe_hash(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The stored recipe is one, and names and hash are its own."""
    identity, recipe = stored.record.identity, context.recipe
    if recipe is None:
        yield f"the stored recipe is not one: {context.recipe_problem}"
        return
    if context.recipe_sha256 != identity.recipe_sha256:
        yield "recipe_sha256 is not the hash of the stored recipe"
    if (identity.recipe_title, identity.own_track) != (recipe.title, recipe.track):
        yield "title or track are not the stored recipe's"


def provenance(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Code, data and weights are named by whole hashes, and the time is one."""
    record = stored.record
    identity, data = record.identity, record.data
    hashes = {
        "plan": identity.plan_sha256,
        "corpus": data.corpus_sha256,
        "tokenizer": data.tokenizer_sha256,
        "validation text": data.validation_sha256,
        **{f"file {name}": sha256 for name, _, sha256 in data.files},
    }
    if identity.git_dirty_sha256:
        hashes["code's difference"] = identity.git_dirty_sha256
    if record.status == "ok":
        hashes["weights"] = record.scores.weights_sha256
    unnamed = [what for what, sha256 in hashes.items() if not _SHA256.fullmatch(sha256)]
    yield from (f"the {what} has no SHA-256" for what in unnamed)
    if not _COMMIT.fullmatch(identity.git_commit):
        yield "git_commit is no commit"
    if not _CREATED.fullmatch(record.created):
        yield "created is no time in UTC"


def known_code(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The code is a commit's, so that others can run it."""
    if stored.record.identity.git_commit == "unknown":
        yield "ran outside a checkout: its code has no commit"
    elif stored.record.identity.git_dirty_sha256:
        yield "its code differs from its commit"


def track(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The track is there, unchanged, and of the record's version of the rules."""
    identity, named = stored.record.identity, context.named
    if named is None:
        yield f"no track {identity.track!r}"
        return
    if context.track is None:
        yield f"measured under another version of track {named.name}"
        return
    if identity.rules != context.track.rules:
        yield f"run under rules v{identity.rules}, the track's are v{context.track.rules}"
    if identity.track_fields != scale_fields(context.track):
        yield "the fields set by the track are not the track's"


def metric_id(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The metric is the track's, version and all."""
    scores = stored.record.scores
    if context.track is None:
        return
    score = context.track.score
    if (scores.metric, scores.metric_id) != (score.metric, score.metric_id):
        yield f"metric {scores.metric_id}, the track's is {score.metric_id}"


def machine_class(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The machine is of the track's class."""
    found = stored.record.machine.machine_class
    if context.track is not None and found != context.track.hardware.machine_class:
        yield f"machine class {found}, the track's is {context.track.hardware.machine_class}"


def assigned_seed(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The seed is the one that the track assigns to its index."""
    identity = stored.record.identity
    if context.track is None:
        return
    if identity.seed_index < 0 or identity.seed != seed_value(context.track, identity.seed_index):
        yield f"seed {identity.seed} is not seed {identity.seed_index} of the track"
