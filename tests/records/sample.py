"""Records for tests: whole, valid under a track of the checkout, every field given."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec

from bench.host.clock import CATEGORIES
from bench.proving.proof import COMPILED, LEAST_EXAMPLES, CompiledProof, Proof
from bench.proving.proof import SCHEMA as PROOF_SCHEMA
from bench.records.events import GENESIS, chained
from bench.records.schema import (
    Curves,
    DataUsed,
    EnergyUsed,
    Identity,
    Machine,
    Memory,
    Record,
    Scores,
    Shape,
    Timing,
    decode,
    encode,
)
from bench.records.store import StoredRecord, read, write_once
from bench.spec.plan import model_config
from bench.spec.recipe import Recipe
from bench.spec.submission import load, method_sha256, short_name
from bench.spec.track import NamedTrack, load_track, on_track, scale_fields, seed_value
from kernels.choices import ALWAYS, REFERENCE
from model.flops import flops_per_token, parameters, scaling_parameters

ROOT = Path(__file__).resolve().parents[2]
LOSSES = [8.3 - 0.05 * step for step in range(64)]
KERNEL = ("relu_squared_mlp", "keep-output")
TEXT_BYTES = 100_000
PLAN_SHA256 = "b" * 64
FACTS = {
    "device_kind": "cpu",
    "device_name": "Example CPU",
    "cpu_model": "Example CPU",
    "cpu_cores": 2,
    "device_count": 1,
    "versions": {"torch": "2.13.0"},
}
LEDGER = dict.fromkeys(CATEGORIES, 0.0) | {
    "import": 2.0,
    "compile": 8.0,
    "warmup": 1.0,
    "train": 15.0,
    "data_wait": 0.5,
    "eval": 3.0,
    "other": 0.5,
}


def quick_track() -> NamedTrack:
    """The track of the sample records."""
    return load_track("cpu-quick", ROOT / "leaderboard" / "tracks")


def quick_recipe() -> Recipe:
    """The recipe of the sample records."""
    return load(ROOT / "submissions" / "quick.toml").recipe


def event_log(
    losses: list[float],
    bpb: float | None,
    seed: int,
    recipe: Recipe | None = None,
    train_s: float = 15.0,
) -> tuple[bytes, str, int]:
    """(bytes, tip, number of events) of the log of a run with these losses and this final score."""
    start = {"recipe": method_sha256(recipe or quick_recipe()), "plan": PLAN_SHA256, "seed": seed}
    entries: list[tuple[str, float, dict[str, Any]]] = [("run_start", 2.0, start)]
    for i, loss in enumerate(losses):
        step = {"step": i + 1, "losses": [loss], "official_s": train_s * (i + 1) / 64}
        entries.append(("step", 3.0 + i, step))
    if bpb is not None:
        scored = {"step": len(losses), "val_bpb": bpb, "nats": bpb * math.log(2.0) * TEXT_BYTES}
        entries.append(("eval_accuracy", 80.0, scored))
    entries.append(("run_stop", 81.0, {"status": "ok" if bpb is not None else "diverged"}))
    return chained_log(entries)


def chained_log(entries: list[tuple[str, float, dict[str, Any]]]) -> tuple[bytes, str, int]:
    """(bytes, tip, number of events) of a log of these keys, times and values."""
    tip, lines = GENESIS, b""
    for key, time_s, value in entries:
        event = chained(tip, key, time_s, value)
        tip, lines = event.hash, lines + msgspec.json.encode(event, order="deterministic") + b"\n"
    return lines, tip, len(entries)


def sample(
    recipe_name: str = "quick",
    seed_index: int = 0,
    bpb: float | None = 2.5,
    recipe: Recipe | None = None,
    created: str = "2026-03-01T12:00:00Z",
    corpus_sha256: str = "c" * 64,
    warnings: list[str] | None = None,
    train_s: float = 15.0,
) -> tuple[Record, bytes]:
    """A record and its event log; without `bpb`, of a run that diverged at its eleventh step."""
    recipe, track = recipe or quick_recipe(), quick_track()
    seed = seed_value(track.track, seed_index)
    losses = LOSSES if bpb is not None else LOSSES[:10]
    events, tip, num_events = event_log(losses, bpb, seed, recipe, train_s)
    record = Record(
        schema=1,
        created=created,
        status="ok" if bpb is not None else "diverged",
        identity=_identity(recipe_name, recipe, track, seed_index, seed),
        machine=Machine(
            machine_class="cpu",
            facts=FACTS,
            settings={"threads": "2"},
            load_average=0.1,
            num_competing_processes=0,
        ),
        data=_data(corpus_sha256),
        shape=_shape(recipe, track, len(losses)),
        timing=_timing(train_s, len(losses)),
        memory=Memory(
            peak_bytes=900 * 2**20, method="peak RSS", reserved_bytes=None, predicted_peak_bytes=950 * 2**20
        ),
        energy=EnergyUsed(joules=None, method="none", reason="no GPU", throttle_reasons=[], dollars=None),
        scores=_scores(bpb, hashlib.sha256(f"{seed} {recipe_name}".encode()).hexdigest()),
        curves=Curves(
            losses=losses,
            logged_steps=list(range(1, len(losses) + 1)),
            logged_seconds=[round(train_s * (i + 1) / 64, 4) for i in range(len(losses))],
            bpb_steps=[] if bpb is None else [64],
            bpbs=[] if bpb is None else [bpb],
        ),
        proofs=[sample_proof()],
        dispatches={"/".join(KERNEL): 4},
        features={},
        warnings=warnings or [],
        events_sha256_tip=tip,
        num_events=num_events,
    )
    return decode(encode(record)), events


def compiled_proof(**ratios: float) -> CompiledProof:
    """One of what the sample records' runs compiled."""
    return CompiledProof(
        schema=PROOF_SCHEMA,
        sources_sha256="6" * 64,
        compiled_sha256="5" * 64,
        device_name="Example CPU",
        versions={"torch": "2.13.0"},
        worst_error_ratios=dict.fromkeys(COMPILED, 0.1) | ratios,
    )


def sample_proof() -> Proof:
    """A proof of the sample records' one fused kernel."""
    return Proof(
        schema=PROOF_SCHEMA,
        op=KERNEL[0],
        implementation=KERNEL[1],
        sources_sha256="7" * 64,
        device_name="Example CPU",
        dtypes=("float32", "bfloat16"),
        versions={"torch": "2.13.0"},
        num_examples=LEAST_EXAMPLES,
        seed=0,
        worst_error_ratios={"value_and_gradient": 0.4, "never_negative": 0.0},
    )


def _identity(name: str, recipe: Recipe, track: NamedTrack, seed_index: int, seed: int) -> Identity:
    return Identity(
        recipe=name,
        recipe_short=short_name(recipe),
        recipe_title=recipe.title,
        recipe_sha256=method_sha256(recipe),
        recipe_resolved=msgspec.to_builtins(recipe),
        own_track=recipe.track,
        track=track.name,
        track_sha256=track.sha256,
        track_fields=scale_fields(track.track),
        rules=track.track.rules,
        plan_sha256=PLAN_SHA256,
        seed_index=seed_index,
        seed=seed,
        git_commit="a" * 40,
        git_dirty_sha256="",
        image_digest="",
    )


def _data(corpus_sha256: str) -> DataUsed:
    return DataUsed(
        dataset="stdlib",
        corpus_sha256=corpus_sha256,
        files=[("part-0", 1000, "d" * 64)],
        tokenizer_sha256="e" * 64,
        vocab_size=4096,
        validation_sha256="f" * 64,
        validation_bytes=TEXT_BYTES,
        validation_documents=9,
        duplicates_removed=1,
        shingle_overlap=0.01,
        train_tokens_available=6_000_000,
        train_tokens_unique=262_144,
        epochs=0.04,
    )


def _shape(recipe: Recipe, track: NamedTrack, steps: int) -> Shape:
    config = model_config(on_track(recipe, track.track, "sample"))
    others = [op for op in ALWAYS if op != KERNEL[0]]
    return Shape(
        depth=config.depth,
        width=config.width,
        parameters=parameters(config),
        parameters_total=sum(parameters(config).values()),
        scaling_parameters=scaling_parameters(config),
        sequence_length=256,
        steps=steps,
        batch_tokens=4096,
        tokens=steps * 4096,
        device_sequences=16,
        accumulation=1,
        world_size=1,
        flops_per_token=flops_per_token(config),
        total_flops=float(flops_per_token(config) * steps * 4096),
        param_data_ratio=steps * 4096 / scaling_parameters(config),
        compute_dtype="bfloat16",
        compiled=True,
        kernels=[
            *({"op": op, "implementation": REFERENCE, "reason": "left to the compiler"} for op in others),
            {"op": KERNEL[0], "implementation": KERNEL[1], "reason": "smaller"},
        ],
    )


def _timing(train_s: float, steps: int) -> Timing:
    ledger = LEDGER | {"train": train_s}
    official_s = train_s + ledger["data_wait"]
    return Timing(
        ledger=ledger,
        wall_s=sum(ledger.values()),
        official_s=official_s,
        cold_s=official_s + ledger["compile"] + ledger["warmup"],
        nanochat_rule_s=train_s * max(steps - 11, 0) / 64,
        step_median_s=train_s / 64,
        step_p90_s=train_s / 64,
        tokens_per_s_median=4096 * 64 / train_s,
        mfu=None,
        mfu_source="no declared peak for this device",
        data_wait_share=0.5 / official_s,
        num_resumes=0,
    )


def _scores(bpb: float | None, weights_sha256: str) -> Scores:
    smoothed = 0.0
    for loss in LOSSES:
        smoothed = 0.9 * smoothed + (1.0 - 0.9) * loss
    return Scores(
        metric="val_bpb",
        metric_id="bpb-documents-v1",
        value=bpb,
        reached_target=None,
        val_bpb=bpb,
        val_bpb_bestfit=bpb,
        min_val_bpb=bpb,
        core=None,
        final_train_loss=LOSSES[-1] if bpb is not None else None,
        final_train_loss_smoothed=smoothed / (1.0 - 0.9**64) if bpb is not None else None,
        evaluation_bytes=TEXT_BYTES if bpb is not None else 0,
        evaluation_tokens=30_000 if bpb is not None else 0,
        probes={"causality_max_change": 0.0, "normalisation_max_error": 1e-6, "loss_max_error": 1e-5},
        weights_sha256=weights_sha256,
    )


def stored(records: Path, record: Record, events: bytes) -> StoredRecord:
    """Write a record as `bench run` does, and read it back."""
    return read(write_once(records, record, events))


def changed(record: Record, path: str, value: object) -> Record:
    """The record with one dotted field set."""
    head, _, rest = path.partition(".")
    inner = getattr(record, head)
    if rest and isinstance(inner, dict):
        value = inner | {rest: value}
    elif rest:
        value = changed(inner, rest, value)
    return msgspec.structs.replace(record, **{head: value})
