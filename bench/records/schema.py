"""The record: one seeded run, measured, as immutable JSON. Imports no torch.

Every figure the board shows is a function of these fields. Sizes are bytes, times seconds, energy joules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bench.evaluation.core.result import CoreScore
from bench.proving.proof import CompiledProof, Proof

SCHEMA = 1


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the record's parts."""


class Identity(Part, frozen=True, kw_only=True):
    """What was run: names and hashes of recipe, plan, track and code."""

    recipe: str
    recipe_short: str  # what sets it apart from its base
    recipe_title: str
    recipe_sha256: str
    recipe_resolved: dict[str, Any]
    own_track: str
    track: str
    track_sha256: str
    track_fields: list[str]  # recipe fields that the track set
    rules: int
    plan_sha256: str
    seed_index: int
    seed: int
    git_commit: str
    git_dirty_sha256: str  # "" when the checkout is clean
    image_digest: str  # "" outside a container


class Machine(Part, frozen=True, kw_only=True):
    """Where it ran."""

    machine_class: str
    facts: dict[str, Any]
    settings: dict[str, str]
    load_average: float
    num_competing_processes: int


class DataUsed(Part, frozen=True, kw_only=True):
    """Which text, by hash."""

    dataset: str
    corpus_sha256: str
    files: list[tuple[str, int, str]]  # name, bytes, sha256: those of the corpus, in order
    tokenizer_sha256: str
    vocab_size: int
    validation_sha256: str
    validation_bytes: int
    validation_documents: int
    duplicates_removed: int
    shingle_overlap: float
    train_tokens_available: int
    train_tokens_unique: int
    epochs: float


class Shape(Part, frozen=True, kw_only=True):
    """What was trained, and how long."""

    depth: int
    width: int
    parameters: dict[str, int]
    parameters_total: int
    scaling_parameters: int
    sequence_length: int
    steps: int
    batch_tokens: int
    tokens: int
    device_sequences: int
    accumulation: int
    world_size: int
    flops_per_token: int
    total_flops: float
    param_data_ratio: float
    compute_dtype: str
    compiled: bool
    kernels: list[dict[str, str]]


class Timing(Part, frozen=True, kw_only=True):
    """Seconds. `ledger` has every category and sums to `wall_s`; the official time is train + data_wait."""

    ledger: dict[str, float]
    wall_s: float
    official_s: float
    cold_s: float  # official + compile + warmup
    nanochat_rule_s: float  # steps after the eleventh only, as nanochat counts
    step_median_s: float
    step_p90_s: float
    tokens_per_s_median: float
    mfu: float | None  # None where no peak is declared
    mfu_source: str
    data_wait_share: float
    num_resumes: int


class Memory(Part, frozen=True, kw_only=True):
    """Peak memory, with how it was read."""

    peak_bytes: int
    method: str
    reserved_bytes: int | None
    predicted_peak_bytes: int


class EnergyUsed(Part, frozen=True, kw_only=True):
    """Energy and cost."""

    joules: float | None
    method: str
    reason: str
    throttle_reasons: list[str]
    dollars: float | None


class Scores(Part, frozen=True, kw_only=True, omit_defaults=True):
    """What was scored, by metric id, and the probes that vouch for it.

    `core_score`, CORE task by task with its standard error, is left out where the track does not score it.
    """

    metric: str
    metric_id: str
    value: float | None
    reached_target: bool | None
    val_bpb: float | None
    val_bpb_bestfit: float | None
    min_val_bpb: float | None
    core: float | None
    final_train_loss: float | None
    final_train_loss_smoothed: float | None
    evaluation_bytes: int
    evaluation_tokens: int
    probes: dict[str, Any]
    weights_sha256: str
    core_score: CoreScore | None = None


class Curves(Part, frozen=True, kw_only=True):
    """Training loss of every step, official seconds at the logged ones, bits per byte at the evaluated ones.

    JSON has no NaN: what was not finite is null.
    """

    losses: Sequence[float | None]
    logged_steps: list[int]
    logged_seconds: list[float]
    bpb_steps: list[int]
    bpbs: Sequence[float | None]


class Record(Part, frozen=True, kw_only=True, omit_defaults=True):
    """One run.

    `compiled` is left out by a run that compiles nothing, and by those from before it was asked for.
    """

    schema: int
    created: str  # UTC, ISO 8601
    status: Literal["ok", "diverged"]
    identity: Identity
    machine: Machine
    data: DataUsed
    shape: Shape
    timing: Timing
    memory: Memory
    energy: EnergyUsed
    scores: Scores
    curves: Curves
    proofs: list[Proof]  # of every fused kernel of the plan, on this device
    dispatches: dict[
        str, int
    ]  # by "op/implementation"; an op inside a compiled graph counts once for each place
    features: dict[str, float]  # activity counters
    warnings: list[str]
    events_sha256_tip: str
    num_events: int
    compiled: CompiledProof | None = None  # that what was compiled computes what the references do


def encode(record: Record) -> bytes:
    """Canonical bytes: fields in this order, keys of tables sorted, two spaces, one newline at the end."""
    return msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes) -> Record:
    """A record from its bytes; a ValueError (msgspec.ValidationError) names the field that is wrong."""
    return msgspec.json.decode(data, type=Record)


def file_stem(record: Record, encoded: bytes | None = None) -> str:
    """`<seed index>-<hash8>`: the name follows from the content, so an edited record has not its name.

    Args:
        encoded: the record's canonical bytes, where they are there already.
    """
    return f"{record.identity.seed_index}-{hashlib.sha256(encoded or encode(record)).hexdigest()[:8]}"
