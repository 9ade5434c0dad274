"""A finished run's facts, put together as its record."""

from __future__ import annotations

import math
import statistics
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from bench.data.corpus import Corpus
from bench.data.loader import Progress
from bench.data.prepared import Prepared
from bench.evaluation.bits_per_byte import BitsPerByte
from bench.evaluation.probes import Probes
from bench.host.backends import PeakMemory
from bench.host.machine import MachineFacts, hardware_class
from bench.host.peaks import declared_peak, mfu
from bench.host.power import Energy
from bench.host.provenance import Provenance
from bench.records import schema
from bench.spec.plan import Plan
from bench.spec.submission import Submission, short_name
from bench.spec.track import NamedTrack

FREE_STEPS_OF_NANOCHAT = 11  # base_train.py counts `if step > 10`, from 0
SMOOTHING = 0.9
UNSTEADY_P90 = 1.25  # p90 over median of the step times
WAITING_SHARE = 0.02


class Measured(NamedTuple):
    """What the conductor measured and collected."""

    submission: Submission
    base_name: str
    track: NamedTrack
    plan: Plan
    facts: MachineFacts
    settings: dict[str, str]
    num_competing: int
    provenance: Provenance
    seed_index: int
    seed: int
    corpus: Corpus
    prepared: Prepared
    progress: Progress
    steps: int
    losses: list[float]
    logged: list[tuple[int, float]]  # (step, official seconds)
    bpbs: list[tuple[int, float]]
    documents: BitsPerByte | None
    bestfit: BitsPerByte | None
    probes: Probes | None
    ledger: dict[str, float]
    carried_s: dict[str, float]
    num_resumes: int
    memory: PeakMemory
    energy: Energy
    features: dict[str, float]
    warnings: list[str]
    events_tip: str
    num_events: int
    image_digest: str


def assemble(measured: Measured) -> schema.Record:
    """The record; `status` is "diverged" when the last loss is not finite."""
    diverged = not measured.losses or not math.isfinite(measured.losses[-1])
    timing = _timing(measured)
    return schema.Record(
        schema=schema.SCHEMA,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        status="diverged" if diverged else "ok",
        identity=_identity(measured),
        machine=schema.Machine(
            machine_class=hardware_class(measured.facts),
            facts=msgspec.to_builtins(measured.facts),
            settings=measured.settings,
            load_average=measured.facts.load_average,
            num_competing_processes=measured.num_competing,
        ),
        data=_data(measured),
        shape=_shape(measured),
        timing=timing,
        memory=schema.Memory(
            peak_bytes=measured.memory.bytes,
            method=measured.memory.method,
            reserved_bytes=measured.memory.reserved_bytes,
            predicted_peak_bytes=measured.plan.predicted_peak_bytes,
        ),
        energy=_energy(measured, timing),
        scores=_scores(measured, diverged),
        curves=schema.Curves(
            losses=measured.losses,
            logged_steps=[step for step, _ in measured.logged],
            logged_seconds=[round(seconds, 4) for _, seconds in measured.logged],
            bpb_steps=[step for step, _ in measured.bpbs],
            bpbs=[bpb for _, bpb in measured.bpbs],
        ),
        proofs=[],
        features=measured.features,
        warnings=measured.warnings + _judge(measured, timing),
        events_sha256_tip=measured.events_tip,
        num_events=measured.num_events,
    )


def _identity(measured: Measured) -> schema.Identity:
    recipe = measured.submission.recipe
    return schema.Identity(
        recipe=measured.submission.name,
        recipe_short=short_name(recipe),
        recipe_title=recipe.title,
        recipe_sha256=measured.submission.sha256,
        recipe_resolved=msgspec.to_builtins(recipe),
        own_track=recipe.track,
        track=measured.track.name,
        track_sha256=measured.track.sha256,
        track_fields=measured.plan.track_fields,
        rules=measured.track.track.rules,
        plan_sha256=measured.plan.sha256,
        seed_index=measured.seed_index,
        seed=measured.seed,
        git_commit=measured.provenance.commit,
        git_dirty_sha256=measured.provenance.dirty_sha256,
        image_digest=measured.image_digest,
    )


def _data(measured: Measured) -> schema.DataUsed:
    facts = measured.prepared.facts
    return schema.DataUsed(
        dataset=measured.plan.recipe.data.dataset,
        corpus_sha256=measured.corpus.sha256,
        files=[(file.name, file.bytes, file.sha256) for file in measured.corpus.files],
        tokenizer_sha256=facts.tokenizer_sha256,
        vocab_size=facts.vocab_size,
        validation_sha256=facts.validation_sha256,
        validation_bytes=facts.validation.text_bytes,
        validation_documents=facts.validation.num_documents,
        duplicates_removed=facts.num_duplicates_removed,
        shingle_overlap=facts.shingle_overlap,
        train_tokens_available=facts.train.num_tokens,
        train_tokens_unique=measured.progress.unique_tokens,
        epochs=measured.progress.epochs_seen,
    )


def _shape(measured: Measured) -> schema.Shape:
    plan, tokens = measured.plan, measured.steps * measured.plan.batch_tokens
    return schema.Shape(
        depth=plan.layers,
        width=plan.width,
        parameters=plan.parameters,
        parameters_total=plan.parameters_total,
        scaling_parameters=plan.scaling_parameters,
        sequence_length=plan.model.sequence_length,
        steps=measured.steps,
        batch_tokens=plan.batch_tokens,
        tokens=tokens,
        device_sequences=plan.device_sequences,
        accumulation=plan.accumulation,
        world_size=plan.world_size,
        flops_per_token=plan.flops_per_token,
        total_flops=float(plan.flops_per_token * tokens),
        param_data_ratio=tokens / plan.scaling_parameters,
        compute_dtype=plan.recipe.precision.compute,
        compiled=plan.compiled,
        kernels=plan.kernels,
    )


def step_seconds(logged: list[tuple[int, float]], first_step: int = 0) -> list[float]:
    """Seconds of each step, steps logged together sharing their time equally."""
    seconds: list[float] = []
    step_before, time_before = first_step, 0.0
    for step, time in logged:
        num_steps = step - step_before
        seconds += [(time - time_before) / num_steps] * num_steps
        step_before, time_before = step, time
    return seconds


def _timing(measured: Measured) -> schema.Timing:
    ledger = {name: seconds for name, seconds in measured.ledger.items() if name != "wall_s"}
    ledger = {name: seconds + measured.carried_s.get(name, 0.0) for name, seconds in ledger.items()}
    official = ledger["train"] + ledger["data_wait"]
    steps = step_seconds(measured.logged)
    median = statistics.median(steps) if steps else 0.0
    rate = measured.plan.batch_tokens / median if median else 0.0
    peak = declared_peak(measured.facts, measured.plan.recipe.precision.compute, num_devices=measured.plan.world_size)
    return schema.Timing(
        ledger=ledger,
        wall_s=measured.ledger["wall_s"] + sum(measured.carried_s.values()),
        official_s=official,
        cold_s=official + ledger["compile"] + ledger["warmup"],
        nanochat_rule_s=sum(steps[FREE_STEPS_OF_NANOCHAT:]),
        step_median_s=median,
        step_p90_s=statistics.quantiles(steps, n=10)[-1] if len(steps) > 1 else median,
        tokens_per_s_median=rate,
        mfu=mfu(rate * measured.plan.flops_per_token, peak),
        mfu_source=peak.source if peak else "no declared peak for this device",
        data_wait_share=ledger["data_wait"] / official if official else 0.0,
        num_resumes=measured.num_resumes,
    )


def _energy(measured: Measured, timing: schema.Timing) -> schema.EnergyUsed:
    hardware = measured.track.track.hardware
    dollars = timing.official_s / 3600 * hardware.device_count * hardware.dollars_per_device_hour
    return schema.EnergyUsed(
        joules=measured.energy.joules,
        method=measured.energy.method,
        reason=measured.energy.reason or "",
        throttle_reasons=list(measured.energy.throttle_reasons),
        dollars=dollars or None,
    )


def _scores(measured: Measured, diverged: bool) -> schema.Scores:
    score = measured.track.track.score
    val_bpb = measured.documents.value if measured.documents else None
    value = val_bpb if score.metric == "val_bpb" else None
    reached = None
    if score.target and value is not None:
        reached = value <= score.target if score.better == "lower" else value >= score.target
    bpbs = [bpb for _, bpb in measured.bpbs]
    probes: dict[str, Any] = msgspec.to_builtins(measured.probes) if measured.probes else {}
    return schema.Scores(
        metric=score.metric,
        metric_id=score.metric_id,
        value=None if diverged else value,
        reached_target=reached,
        val_bpb=val_bpb,
        val_bpb_bestfit=measured.bestfit.value if measured.bestfit else None,
        min_val_bpb=min(bpbs) if bpbs else None,
        core=None,
        final_train_loss=measured.losses[-1] if measured.losses and not diverged else 0.0,
        final_train_loss_smoothed=_smoothed(measured.losses) if not diverged else 0.0,
        evaluation_bytes=measured.documents.num_bytes if measured.documents else 0,
        evaluation_tokens=measured.documents.num_tokens if measured.documents else 0,
        probes={name: value for name, value in probes.items() if name != "weights_sha256"},
        weights_sha256=probes.get("weights_sha256", ""),
    )


def _smoothed(losses: list[float]) -> float:
    """Debiased exponential average, as nanochat logs it."""
    average = 0.0
    for loss in losses:
        average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
    return average / (1.0 - SMOOTHING ** len(losses)) if losses else 0.0


def _judge(measured: Measured, timing: schema.Timing) -> list[str]:
    """What the harness thinks of its own number."""
    warnings = []
    if timing.step_median_s and timing.step_p90_s / timing.step_median_s > UNSTEADY_P90:
        warnings.append(f"unsteady: p90 of the step time is {timing.step_p90_s / timing.step_median_s:.2f} x the median")
    if timing.data_wait_share > WAITING_SHARE:
        warnings.append(f"data wait is {timing.data_wait_share:.1%} of the official time")
    if measured.num_competing:
        warnings.append(f"{measured.num_competing} other process(es) used the processor at the start")
    if measured.progress.epochs_seen > 1:
        warnings.append(f"training text repeated: {measured.progress.epochs_seen:.2f} epochs")
    if measured.provenance.dirty_sha256:
        warnings.append("the code differs from its commit")
    if measured.num_resumes:
        warnings.append(f"resumed {measured.num_resumes} time(s); steps lost to the interruption are not timed")
    if measured.energy.throttle_reasons:
        warnings.append(f"clocks were held back: {', '.join(measured.energy.throttle_reasons)}")
    return warnings
