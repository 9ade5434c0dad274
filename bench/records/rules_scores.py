"""Rules about what was scored: which text, by what sums, under which probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import msgspec

from bench.evaluation.core.bundle import PUBLISHED, BundleManifest
from bench.records.rules_context import Context
from bench.records.schema import Record
from bench.records.store import StoredRecord

SMOOTHING = 0.9
# Blocks of 64 bytes of the validation text that training has too. Python's library against itself, licence
# heads and all, comes to 0.155; above one half the text was trained on.
MAX_OVERLAP = 0.5
# What bench/evaluation/probes.py lets pass; a test holds the two together.
PROBE_TOLERANCES = {"causality_max_change": 1e-3, "normalisation_max_error": 1e-4, "loss_max_error": 1e-2}
CORE_TASKS, CORE_ITEMS = 22, 91_037  # of the published bundle
LIMITED = "CORE is of the first items of each task only"


def finite(stored: StoredRecord, context: Context) -> Iterator[str]:
    """A finished run's losses and scores are numbers; a diverged one has no score."""
    record = stored.record
    if record.status == "ok" and None in (*record.curves.losses, *record.curves.bpbs):
        yield "a loss or score of a finished run is not finite"
    if record.status == "ok" and record.scores.metric == "val_bpb" and record.scores.value is None:
        yield "a finished run has no score"
    if record.status == "diverged" and record.scores.value is not None:
        yield "a diverged run has a score"


def score(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The score is what was measured at the end, and no other figure of the record says otherwise."""
    record, scores, curves = stored.record, stored.record.scores, stored.record.curves
    if record.status != "ok":
        return
    if scores.metric == "val_bpb" and scores.value != scores.val_bpb:
        yield "the score is not the measured val_bpb"
    if curves.bpbs and (curves.bpbs[-1], curves.bpb_steps[-1:]) != (scores.val_bpb, [record.shape.steps]):
        yield "the score is not the last of its curve"
    if scores.min_val_bpb != min((bpb for bpb in curves.bpbs if bpb is not None), default=None):
        yield "the least val_bpb is not that of the curve"
    if scores.final_train_loss != (curves.losses[-1] if curves.losses else None):
        yield "the final loss is not the last of the curve"
    smoothed = _smoothed(curves.losses)
    if smoothed is not None and not _equal(scores.final_train_loss_smoothed, smoothed):
        yield f"the smoothed loss is not that of the curve, {smoothed:.4f}"


def _smoothed(losses: Sequence[float | None]) -> float | None:
    average = 0.0
    for loss in losses:
        if loss is None:
            return None
        average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
    return average / (1.0 - SMOOTHING ** len(losses)) if losses else None


def _equal(found: float | None, expected: float) -> bool:
    return found is not None and math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)


def target(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Whether the target was reached follows from the score."""
    if context.track is None:
        return
    wanted, value = context.track.score, stored.record.scores.value
    reached = None
    if value is not None and wanted.target:
        reached = value <= wanted.target if wanted.better == "lower" else value >= wanted.target
    if stored.record.scores.reached_target != reached:
        yield f"reached_target is {stored.record.scores.reached_target}, the score says {reached}"


def bits_per_byte(stored: StoredRecord, context: Context) -> Iterator[str]:
    """val_bpb is the logged nats over ln 2 and the bytes of the text."""
    scores = stored.record.scores
    if stored.record.status != "ok" or context.events is None or scores.val_bpb is None:
        return
    nats = [event.value.get("nats") for event in context.events if event.key == "eval_accuracy"]
    if not nats or not isinstance(nats[-1], float):
        yield "the event log has no nats of the score"
        return
    bpb = nats[-1] / (math.log(2.0) * max(scores.evaluation_bytes, 1))
    if not _equal(scores.val_bpb, bpb):
        yield f"{nats[-1]:.1f} nats over {scores.evaluation_bytes:,} bytes are {bpb:.6f} bits per byte"


def whole_text(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Every byte of the validation text was scored, none twice."""
    scores, data = stored.record.scores, stored.record.data
    if stored.record.status == "ok" and scores.evaluation_bytes != data.validation_bytes:
        yield f"scored {scores.evaluation_bytes:,} bytes of a validation text of {data.validation_bytes:,}"
    if stored.record.status == "ok" and not 0 < scores.evaluation_tokens <= scores.evaluation_bytes:
        yield f"{scores.evaluation_tokens:,} tokens for {scores.evaluation_bytes:,} bytes"
    if context.asked is not None and data.validation_bytes > context.asked.eval.validation_bytes:
        yield f"a validation text of {data.validation_bytes:,} bytes, more than the track's"


def data_disjoint(stored: StoredRecord, context: Context) -> Iterator[str]:
    """No validation text among the training text, and no training file twice."""
    data = stored.record.data
    names = [name for name, _, _ in data.files]
    if not 0.0 <= data.shingle_overlap <= MAX_OVERLAP:
        yield f"training has {data.shingle_overlap:.1%} of the validation text's blocks"
    if data.validation_sha256 in {data.corpus_sha256, *(sha256 for _, _, sha256 in data.files)}:
        yield "the validation text is one of the training files"
    if len(set(names)) != len(names):
        yield "a file was read twice"
    if not 0 <= data.train_tokens_unique <= data.train_tokens_available:
        yield f"{data.train_tokens_unique:,} different tokens of {data.train_tokens_available:,}"


def same_text(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Records over one corpus, by hash, say the same of it."""
    first, data = context.reference, stored.record.data
    if first is stored.record:
        return
    same = ("dataset", "files", "validation_sha256", "validation_bytes", "validation_documents")
    for field in (*same, "shingle_overlap"):
        if getattr(data, field) != getattr(first.data, field):
            yield f"{field} is not that of the oldest record over this corpus"


def same_tokenizer(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Tokenizers of one size, made of as much of one corpus, are one tokenizer."""
    data, first = stored.record.data, context.same_vocabulary
    if data.tokenizer_sha256 != first.data.tokenizer_sha256:
        yield (
            f"its tokenizer of {data.vocab_size:,} tokens is {data.tokenizer_sha256[:8]}, that of the oldest "
            f"record over this corpus {first.data.tokenizer_sha256[:8]} ({first.identity.recipe})"
        )


def probes(stored: StoredRecord, context: Context) -> Iterator[str]:
    """What was scored was causal, normalised, and scored by its own logits."""
    if stored.record.status != "ok":
        return
    for name, most in PROBE_TOLERANCES.items():
        found = stored.record.scores.probes.get(name)
        if not isinstance(found, float | int) or not 0 <= found <= most:
            yield f"probe {name} is {found!r}, at most {most:g} is allowed"


def core(stored: StoredRecord, context: Context) -> Iterator[str]:
    """CORE follows from its tasks' counts, with the record's tokenizer and metric."""
    record = stored.record
    scores, measured = record.scores, record.scores.core_score
    if scores.core != (measured.value if measured else None):
        yield "the CORE is not that of its tasks"
    if scores.metric == "core" and record.status == "ok":
        yield from _as_score(record)
    if measured is None:
        return
    yield from (problem for problem in measured.problems() if problem != LIMITED)
    if scores.metric == "core" and measured.metric_id != scores.metric_id:
        yield f"CORE was measured as {measured.metric_id}, the record says {scores.metric_id}"
    if measured.tokenizer_sha256 != record.data.tokenizer_sha256:
        yield "CORE was measured with another tokenizer"


def _as_score(record: Record) -> Iterator[str]:
    if record.scores.value != record.scores.core:
        yield "the score is not the measured CORE"
    if record.scores.core_score is None:
        yield "a finished run of a track that scores CORE has none"


def core_whole(stored: StoredRecord, context: Context) -> Iterator[str]:
    """CORE is of every item of the bundle."""
    measured = stored.record.scores.core_score
    if measured is None:
        return
    if measured.limited:
        yield LIMITED
    if measured.num_items != sum(task.num_items for task in measured.tasks):
        yield "CORE's items are not those of its tasks"
    whole = (CORE_TASKS, CORE_ITEMS)
    if measured.bundle_sha256 == _published_sha256() and (len(measured.tasks), measured.num_items) != whole:
        tasks = f"{measured.num_items:,} items in {len(measured.tasks)} tasks"
        yield f"CORE of {tasks}; the bundle has {CORE_ITEMS:,} in {CORE_TASKS}"


@cache
def _published_sha256() -> str:
    return msgspec.json.decode(PUBLISHED.read_bytes(), type=BundleManifest).sha256
