"""A finished run's facts, put together as its record."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from bench.data.corpus import Corpus
from bench.data.loader import Progress as Coverage
from bench.data.prepared import Prepared
from bench.evaluation.bits_per_byte import BitsPerByte
from bench.evaluation.core.result import CoreScore
from bench.evaluation.probes import Probes
from bench.host.backends import FLOAT32_PRODUCTS, PeakMemory
from bench.host.facts import MachineFacts
from bench.host.machine import hardware_class
from bench.host.peaks import declared_peak, mfu
from bench.host.power import Energy
from bench.host.provenance import Provenance
from bench.proving.proof import CompiledProof, Proof
from bench.records import schema
from bench.records.progress import RunProgress
from bench.spec.batch_ramp import is_on
from bench.spec.plan import Plan
from bench.spec.submission import Submission, short_name
from bench.spec.track import NamedTrack, Score

FREE_STEPS_OF_NANOCHAT = 11  # base_train.py counts `if step > 10`, from 0
SMOOTHING = 0.9
UNSTEADY_P90 = 1.25  # p90 over median of the step times
WAITING_SHARE = 0.02


class Outcome(NamedTuple):
    """What training and evaluation came to; the scores are None for a diverged run."""

    coverage: Coverage
    energy: Energy
    documents: BitsPerByte | None
    bestfit: BitsPerByte | None
    probes: Probes | None
    features: dict[str, float]
    core: CoreScore | None  # None too where the track does not score it


class Measured(NamedTuple):
    """What the conductor measured and collected."""

    submission: Submission
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
    progress: RunProgress
    outcome: Outcome
    ledger: dict[str, float]
    memory: PeakMemory
    proofs: list[Proof]
    compiled: CompiledProof | None
    dispatches: dict[str, int]
    warnings: list[str]
    events_tip: str
    image_digest: str


def assemble(measured: Measured) -> schema.Record:
    """The record; `status` is "diverged" when the run stopped at a number that is not finite."""
    timing = _timing(measured)
    return schema.Record(
        schema=schema.SCHEMA,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        status="ok" if measured.progress.diverged_at is None else "diverged",
        identity=_identity(measured),
        machine=_machine(measured),
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
        scores=_scores(measured),
        curves=_curves(measured.progress),
        proofs=measured.proofs,
        dispatches=measured.dispatches,
        features=measured.outcome.features,
        warnings=measured.warnings + _judge(measured, timing),
        events_sha256_tip=measured.events_tip,
        num_events=measured.progress.num_events,
        compiled=measured.compiled,
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


def _machine(measured: Measured) -> schema.Machine:
    return schema.Machine(
        machine_class=hardware_class(measured.facts),
        facts=msgspec.to_builtins(measured.facts),
        settings=measured.settings,
        load_average=measured.facts.load_average,
        num_competing_processes=measured.num_competing,
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
        train_tokens_unique=measured.outcome.coverage.unique_tokens,
        epochs=measured.outcome.coverage.epochs_seen,
    )


def _shape(measured: Measured) -> schema.Shape:
    plan, tokens = measured.plan, measured.plan.tokens_before(measured.progress.step)
    return schema.Shape(
        depth=plan.layers,
        width=plan.width,
        parameters=plan.parameters,
        parameters_total=plan.parameters_total,
        scaling_parameters=plan.scaling_parameters,
        sequence_length=plan.model.sequence_length,
        steps=measured.progress.step,
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
    carried_s = measured.progress.carried_s
    ledger = {
        name: seconds + carried_s.get(name, 0.0)
        for name, seconds in measured.ledger.items()
        if name != "wall_s"
    }
    official = ledger["train"] + ledger["data_wait"]
    steps = step_seconds(measured.progress.logged)
    median = statistics.median(steps) if steps else 0.0
    rate = measured.plan.batch_tokens / median if median else 0.0
    if is_on(measured.plan.recipe.schedule.batch_warmup) and median:
        rate = statistics.median(measured.plan.tokens_of(step) / s for step, s in enumerate(steps))
    peak = declared_peak(
        measured.facts, measured.plan.recipe.precision.compute, num_devices=measured.plan.world_size
    )
    return schema.Timing(
        ledger=ledger,
        wall_s=measured.ledger["wall_s"] + sum(carried_s.values()),
        official_s=official,
        cold_s=official + ledger["compile"] + ledger["warmup"],
        nanochat_rule_s=sum(steps[FREE_STEPS_OF_NANOCHAT:], 0.0),
        step_median_s=median,
        step_p90_s=statistics.quantiles(steps, n=10)[-1] if len(steps) > 1 else median,
        tokens_per_s_median=rate,
        mfu=mfu(rate * measured.plan.flops_per_token, peak),
        mfu_source=peak.source if peak else "no declared peak for this device",
        data_wait_share=ledger["data_wait"] / official if official else 0.0,
        num_resumes=measured.progress.num_resumes,
    )


def _energy(measured: Measured, timing: schema.Timing) -> schema.EnergyUsed:
    hardware, energy = measured.track.track.hardware, measured.outcome.energy
    dollars = timing.official_s / 3600 * hardware.device_count * hardware.dollars_per_device_hour
    missing = ""
    if measured.progress.num_resumes:
        missing = "resumed: what earlier processes used is not known"
    elif int(measured.settings.get("nodes", "1")) > 1:
        missing = "several machines: the first one's meter does not read the others"
    return schema.EnergyUsed(
        joules=None if missing else energy.joules,
        method="none" if missing else energy.method,
        reason=missing or energy.reason or "",
        throttle_reasons=list(energy.throttle_reasons),
        dollars=dollars or None,
    )


def _curves(progress: RunProgress) -> schema.Curves:
    return schema.Curves(
        losses=progress.losses,
        logged_steps=[step for step, _ in progress.logged],
        logged_seconds=[round(seconds, 4) for _, seconds in progress.logged],
        bpb_steps=[step for step, _ in progress.bpbs],
        bpbs=[bpb for _, bpb in progress.bpbs],
    )


def _scores(measured: Measured) -> schema.Scores:
    score, losses, outcome = measured.track.track.score, measured.progress.losses, measured.outcome
    documents, bestfit = outcome.documents, outcome.bestfit
    val_bpb = documents.value if documents else None
    core = outcome.core.value if outcome.core else None
    value = val_bpb if score.metric == "val_bpb" else core
    probes = msgspec.to_builtins(outcome.probes) if outcome.probes else {}
    return schema.Scores(
        metric=score.metric,
        metric_id=score.metric_id,
        value=value,
        reached_target=_reached(value, score),
        val_bpb=val_bpb,
        val_bpb_bestfit=bestfit.value if bestfit else None,
        min_val_bpb=min((bpb for _, bpb in measured.progress.bpbs), default=None),
        core=core,
        final_train_loss=losses[-1] if losses else None,
        final_train_loss_smoothed=_smoothed(losses),
        evaluation_bytes=documents.num_bytes if documents else 0,
        evaluation_tokens=documents.num_tokens if documents else 0,
        probes={name: value for name, value in probes.items() if name != "weights_sha256"},
        weights_sha256=probes.get("weights_sha256", ""),
        core_score=outcome.core,
    )


def _reached(value: float | None, score: Score) -> bool | None:
    """Whether the score passes the track's target; None without a target or a score."""
    if value is None or not score.target:
        return None
    return value <= score.target if score.better == "lower" else value >= score.target


def _smoothed(losses: list[float]) -> float | None:
    """Debiased exponential average, as nanochat logs it."""
    average = 0.0
    for loss in losses:
        average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
    return average / (1.0 - SMOOTHING ** len(losses)) if losses else None


def _judge(measured: Measured, timing: schema.Timing) -> list[str]:
    """What the harness thinks of its own number."""
    warnings = []
    if measured.progress.diverged_at is not None:
        warnings.append(
            f"diverged at step {measured.progress.diverged_at}: {measured.progress.diverged_because}"
        )
    if timing.step_median_s and timing.step_p90_s / timing.step_median_s > UNSTEADY_P90:
        warnings.append(
            f"unsteady: p90 of the step time is {timing.step_p90_s / timing.step_median_s:.2f} x the median"
        )
    if timing.data_wait_share > WAITING_SHARE:
        warnings.append(f"data wait is {timing.data_wait_share:.1%} of the official time")
    compute = measured.plan.recipe.precision.compute
    if compute in measured.settings.get(FLOAT32_PRODUCTS, "").split(", "):
        warnings.append(f"{compute} products were taken in float32: the processor has no units for them")
    if measured.num_competing:
        warnings.append(f"{measured.num_competing} other process(es) used the processor at the start")
    if measured.outcome.coverage.epochs_seen > 1:
        warnings.append(f"training text repeated: {measured.outcome.coverage.epochs_seen:.2f} epochs")
    if measured.provenance.dirty_sha256:
        warnings.append("the code differs from its commit")
    if measured.progress.num_resumes:
        warnings.append(
            f"resumed {measured.progress.num_resumes} time(s); steps lost to the interruption are not timed"
        )
    if measured.outcome.energy.throttle_reasons:
        warnings.append(f"clocks were held back: {', '.join(measured.outcome.energy.throttle_reasons)}")
    return warnings
