"""Rules about what was trained: the model, its kernels and their proofs, and what the device could do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bench.host.peaks import known_device
from bench.proving.proof import problems_of_compiled, problems_of_proofs
from bench.records.rules_context import Context, schedule_of
from bench.records.schema import Record
from bench.records.store import StoredRecord
from kernels.choices import ALWAYS, IMPLEMENTATIONS, REFERENCE, dtype_given
from model.flops import flops_per_token, fp8_share, parameters, scaling_parameters

# No core passes it: AMX, the widest unit there is, does 1,024 bf16 operations a cycle (Intel 64 and IA-32
# Architectures Optimization Reference Manual, chapter on AMX), and no core with it clocks 6 GHz.
CPU_CORE_FLOPS_PER_S = 1024 * 6e9
# A step reads and writes every float32 weight once at least. Weights that a cache could hold are let off: the
# largest on a declared device, B200's second level, has 126 MB.
MASTER_BYTES = 8
# Runs before were not asked for it.
COMPILED_PROVED_SINCE = "2026-11-30"
CACHED_BYTES = 256 * 10**6


def asked_shape(stored: StoredRecord, context: Context) -> Iterator[str]:
    """What was trained is what the recipe on this track asks for."""
    record, asked = stored.record, context.asked
    if asked is None:
        if context.recipe is not None and context.track is not None:
            yield "the stored recipe cannot stand on its track"
        return
    shape = record.shape
    expected = {
        "depth": (shape.depth, asked.model.depth),
        "sequence_length": (shape.sequence_length, asked.model.sequence_length),
        "vocab_size": (record.data.vocab_size, asked.model.vocab_size),
        "dataset": (record.data.dataset, asked.data.dataset),
        "compute_dtype": (shape.compute_dtype, asked.precision.compute),
        "compiled": (shape.compiled, shape.compiled and asked.compile.enabled),
    }
    if asked.batch.tokens != "auto":
        expected["batch_tokens"] = (shape.batch_tokens, asked.batch.tokens)
    yield from (
        f"{field} is {found}, the recipe on this track asks for {wanted}"
        for field, (found, wanted) in expected.items()
        if found != wanted
    )
    yield from _horizon(record, context)


def _horizon(record: Record, context: Context) -> Iterator[str]:
    """A horizon is whole steps up to it; one in seconds ends with its time."""
    schedule = schedule_of(record, context)
    if schedule is None:
        yield "the batch grows, but not in whole micro-batches"
    elif schedule.steps is not None and record.status == "ok" and record.shape.steps != schedule.steps:
        yield f"trained {record.shape.steps} steps, the recipe's horizon is {schedule.steps}"


def derived_shape(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Width, parameters, FLOPs and tokens are those of the model that the recipe asks for."""
    shape, config = stored.record.shape, context.config
    schedule = schedule_of(stored.record, context)
    if schedule is not None:
        micro_tokens = shape.batch_tokens // max(shape.accumulation, 1)
        if shape.tokens != schedule.ramp.micro_index(shape.steps) * micro_tokens:
            yield f"{shape.tokens} tokens are not {shape.steps} steps of {shape.batch_tokens}"
    rows = shape.device_sequences * shape.accumulation * shape.world_size
    if shape.batch_tokens != rows * shape.sequence_length:
        yield f"{shape.batch_tokens} tokens a step are not {rows} rows of {shape.sequence_length}"
    if shape.parameters_total != sum(shape.parameters.values()):
        yield "the parameters do not sum to their total"
    if config is None:
        return
    expected = {
        "width": (shape.width, config.width),
        "parameters": (shape.parameters, parameters(config)),
        "scaling_parameters": (shape.scaling_parameters, scaling_parameters(config)),
        "flops_per_token": (shape.flops_per_token, flops_per_token(config)),
        "total_flops": (shape.total_flops, float(flops_per_token(config) * shape.tokens)),
        "param_data_ratio": (shape.param_data_ratio, shape.tokens / scaling_parameters(config)),
    }
    yield from (
        f"{field} is {found}, the model has {wanted}"
        for field, (found, wanted) in expected.items()
        if found != wanted
    )


def devices(stored: StoredRecord, context: Context) -> Iterator[str]:
    """As many devices as the track's class has, and no fewer than the machine has."""
    shape, facts = stored.record.shape, stored.record.machine.facts
    if context.track is None:
        return
    needed = context.track.hardware.device_count
    if shape.world_size != needed:
        yield f"trained on {shape.world_size} devices, the track is for {needed}"
    if facts.get("device_kind") != context.track.hardware.device_kind:
        yield f"device kind {facts.get('device_kind')!r}, the track's is {context.track.hardware.device_kind}"


def parameter_cap(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The whole model stays below the track's cap, where it has one."""
    cap = context.track.limits.parameters if context.track is not None else None
    if cap is not None and stored.record.shape.parameters_total > cap:
        yield f"{stored.record.shape.parameters_total:,} parameters, the track allows {cap:,}"


def kernels(stored: StoredRecord, context: Context) -> Iterator[str]:
    """One known implementation of every op the model needs, and the one a recipe names."""
    chosen = [(each.get("op", ""), each.get("implementation", "")) for each in stored.record.shape.kernels]
    ops = [op for op, _ in chosen]
    for op, implementation in chosen:
        if implementation not in IMPLEMENTATIONS.get(op, ()):
            yield f"no kernel {op}/{implementation}"
    if len(set(ops)) != len(ops):
        yield "an op has two kernels"
    if context.asked is None or context.config is None:
        return
    needed = set(ALWAYS) - (set() if context.config.qk_norm else {"rotary_qk_norm"})
    needed |= {"bigram_residual"} if context.config.bigram_rows else set()
    needed |= {"fp8_linear"} if fp8_share(context.config) else set()
    yield from (f"op {op} has no kernel" for op in sorted(needed - set(ops)))
    for op, implementation in chosen:
        named = getattr(context.asked.kernels, op, "auto")
        if named not in ("auto", implementation):
            yield f"kernel {op}/{implementation}, the recipe names {named}"


def proofs(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Every fused kernel was proved on the run's device, with its libraries, from one set of sources."""
    record, facts = stored.record, stored.record.machine.facts
    whole = [each for each in record.shape.kernels if {"op", "implementation"} <= each.keys()]
    versions, device = facts.get("versions"), facts.get("device_name")
    yield from problems_of_proofs(
        whole, record.proofs, str(device or ""), versions if isinstance(versions, dict) else {}
    )
    if len({proof.sources_sha256 for proof in record.proofs}) > 1:
        yield "its proofs are of different sources"
    if len({proof.name for proof in record.proofs}) != len(record.proofs):
        yield "a kernel has two proofs"
    computed = record.shape.compute_dtype
    yield from (
        f"proof of {proof.name} is not of {dtype_given(proof.op, computed)}"
        for proof in record.proofs
        if dtype_given(proof.op, computed) not in proof.dtypes
    )


def compiled(stored: StoredRecord, context: Context) -> Iterator[str]:
    """What was compiled met the references on the run's device, with its libraries."""
    record, facts = stored.record, stored.record.machine.facts
    if record.compiled is None:
        if record.shape.compiled and record.created >= COMPILED_PROVED_SINCE:
            yield "what was compiled was not held to the references"
        return
    if not record.shape.compiled:
        yield "a proof of compiled code in a run that compiled none"
    versions, device = facts.get("versions"), facts.get("device_name")
    yield from problems_of_compiled(
        record.compiled, str(device or ""), versions if isinstance(versions, dict) else {}
    )


def dispatched(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Every fused kernel that was chosen ran."""
    for each in stored.record.shape.kernels:
        name = f"{each.get('op', '')}/{each.get('implementation', '')}"
        if each.get("implementation") != REFERENCE and stored.record.dispatches.get(name, 0) <= 0:
            yield f"kernel {name} was chosen and never ran"


def mfu(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Above 0 and at most 1, and the rate's share of the declared peak."""
    record, found = stored.record, stored.record.timing.mfu
    if found is None:
        return
    if not 0 < found <= 1:
        yield f"MFU {found:.1%} is impossible"
    device = known_device(str(record.machine.facts.get("device_name", "")))
    peak = device.flops_per_s.get(record.shape.compute_dtype) if device else None
    if peak is None:
        yield "an MFU without a declared peak"
        return
    rate = record.timing.tokens_per_s_median * record.shape.flops_per_token
    expected = rate / (peak * max(record.shape.world_size, 1))
    if not math.isclose(found, expected, rel_tol=1e-6):
        yield f"MFU {found:.2%}, rate and peak give {expected:.2%}"


def roofline(stored: StoredRecord, context: Context) -> Iterator[str]:
    """No run is faster than its FLOPs at the device's peak, nor than its weights' bytes at its bandwidth."""
    record = stored.record
    shape, official_s = record.shape, record.timing.official_s
    for what, seconds in _floors(record):
        if official_s < seconds * shape.steps:
            yield f"{official_s:.3f} s: {what} takes {seconds * shape.steps:.3g} s on this device"
        if record.curves.logged_steps and record.timing.step_median_s < seconds:
            yield f"{record.timing.step_median_s:.3g} s a step: {what} takes {seconds:.3g} s on this device"


def _floors(record: Record) -> Iterator[tuple[str, float]]:
    """(what bounds a step, its least seconds); nothing is bounded on a device without declared peaks."""
    facts, shape = record.machine.facts, record.shape
    world, cores = max(shape.world_size, 1), facts.get("cpu_cores")
    step_flops = float(shape.flops_per_token * shape.batch_tokens)
    if facts.get("device_kind") == "cpu" and isinstance(cores, int):
        yield "its arithmetic", step_flops / (max(cores, 1) * CPU_CORE_FLOPS_PER_S)
    device = known_device(str(facts.get("device_name", "")))
    if device is None:
        return
    yield "its arithmetic", step_flops / (max(device.flops_per_s.values()) * world)
    moved = MASTER_BYTES * shape.parameters_total / world
    if device.bytes_per_s is not None and moved > CACHED_BYTES:
        yield "moving its weights", moved / device.bytes_per_s
