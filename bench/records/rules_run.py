"""Rules about how a run went: its event log, its time, its memory and its cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from bench.host.clock import CATEGORIES
from bench.records.events import Event
from bench.records.rules_context import Context, schedule_of
from bench.records.schema import Record
from bench.records.store import StoredRecord

LEDGER_TOLERANCE = 0.005
ROUNDING_S = 1e-3  # `logged_seconds` are rounded to 0.1 ms, and quantiles of few steps extrapolate
FREE_STEPS_OF_NANOCHAT = 11


def event_chain(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The event log is there, whole, and the one that the record was made from."""
    if context.log_problem:
        yield context.log_problem


def run_identity(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The log begins with this recipe, plan and seed and ends with this status."""
    if not context.events:
        return
    identity, first, last = stored.record.identity, context.events[0], context.events[-1]
    says = {"recipe": identity.recipe_sha256, "plan": identity.plan_sha256, "seed": identity.seed}
    if first.key != "run_start" or first.value != says:
        yield "the event log is not of this recipe, plan and seed"
    if last.key != "run_stop" or last.value != {"status": stored.record.status}:
        yield f"the event log does not end as {stored.record.status}"


def event_curves(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Losses, times and scores are the log's, and there is a loss of every step."""
    record, curves, events = stored.record, stored.record.curves, context.events
    if events is None:
        return
    losses = [loss for some in _logged(events, "step", "losses") if isinstance(some, list) for loss in some]
    if losses != list(curves.losses):
        yield "the loss curve is not the event log's"
    seconds = _logged(events, "step", "official_s")
    rounded = [round(second, 4) if isinstance(second, float | int) else second for second in seconds]
    if (_logged(events, "step", "step"), rounded) != (curves.logged_steps, curves.logged_seconds):
        yield "the times of the steps are not the event log's"
    scored = _logged(events, "eval_accuracy", "step"), _logged(events, "eval_accuracy", "val_bpb")
    if scored != (curves.bpb_steps, list(curves.bpbs)):
        yield "the bits per byte are not the event log's"
    if _logged(events, "core", "value") != ([] if record.scores.core is None else [record.scores.core]):
        yield "the CORE is not the event log's"
    if record.status == "ok" and len(losses) != record.shape.steps:
        yield f"{len(losses)} losses for {record.shape.steps} steps"


def _logged(events: Sequence[Event], key: str, field: str) -> list[object]:
    return [event.value.get(field) for event in events if event.key == key]


def ledger(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Exclusive categories, none negative, that sum to the process's wall-clock."""
    timing = stored.record.timing
    total = math.fsum(timing.ledger.values())
    if sorted(timing.ledger) != sorted(CATEGORIES):
        yield "the ledger's categories are not the harness's"
    if any(seconds < 0 for seconds in timing.ledger.values()):
        yield "a ledger category is negative"
    if not abs(total - timing.wall_s) <= LEDGER_TOLERANCE * timing.wall_s:
        yield f"the ledger sums to {total:.3f} s, the process ran {timing.wall_s:.3f} s"


def official_time(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The official time is train + data_wait; the cold one adds compile and warmup."""
    timing = stored.record.timing
    spent = {name: timing.ledger.get(name, math.nan) for name in CATEGORIES}
    official = spent["train"] + spent["data_wait"]
    if not _equal(official, timing.official_s):
        yield f"official time {timing.official_s:.3f} s is not train + data_wait, {official:.3f} s"
    cold = official + spent["compile"] + spent["warmup"]
    if not _equal(cold, timing.cold_s):
        yield f"cold time {timing.cold_s:.3f} s is not the official one + compile + warmup, {cold:.3f} s"
    if official and not _equal(spent["data_wait"] / official, timing.data_wait_share):
        yield f"data wait is not {timing.data_wait_share:.1%} of the official time"


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-6)


def step_times(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Step times, their median and the rate follow from the logged seconds, which the clock covers."""
    record, timing = stored.record, stored.record.timing
    problem = _order(record)
    if problem:
        yield problem
        return
    seconds = _step_seconds(record)
    if seconds and sum(seconds) > timing.official_s + ROUNDING_S:
        yield f"its steps took {sum(seconds):.3f} s, its official time is {timing.official_s:.3f} s"
    yield from _rates(record, context, seconds)


def _order(record: Record) -> str:
    steps, seconds = record.curves.logged_steps, record.curves.logged_seconds
    if len(steps) != len(seconds):
        return f"{len(steps)} logged steps have {len(seconds)} times"
    if any(b <= a for a, b in zip([0, *steps], steps, strict=False)):
        return "the logged steps do not ascend"
    if not all(a <= b < math.inf for a, b in zip([0.0, *seconds], seconds, strict=False)):
        return "the steps' clock runs backwards"
    if steps and steps[-1] > min(record.shape.steps, len(record.curves.losses)):
        return f"step {steps[-1]} was logged of {record.shape.steps}"
    if record.status == "ok" and steps[-1:] != [record.shape.steps]:
        return f"the log ends at step {steps[-1] if steps else 0} of {record.shape.steps}"
    return ""


def _step_seconds(record: Record) -> list[float]:
    """Seconds of each step, those logged together sharing their time equally."""
    found: list[float] = []
    at, before_s = 0, 0.0
    for step, second in zip(record.curves.logged_steps, record.curves.logged_seconds, strict=True):
        found += [(second - before_s) / (step - at)] * (step - at)
        at, before_s = step, second
    return found


def _rates(record: Record, context: Context, seconds: list[float]) -> Iterator[str]:
    timing = record.timing
    median = statistics.median(seconds) if seconds else 0.0
    p90 = statistics.quantiles(seconds, n=10)[-1] if len(seconds) > 1 else median
    figures = {
        "median step": (timing.step_median_s, median),
        "p90 step": (timing.step_p90_s, p90),
        "time by nanochat's rule": (timing.nanochat_rule_s, sum(seconds[FREE_STEPS_OF_NANOCHAT:], 0.0)),
    }
    for what, (found, expected) in figures.items():
        if not abs(found - expected) <= ROUNDING_S:
            yield f"{what} {found:.4f} s, the logged steps give {expected:.4f} s"
    rate, tolerance = _median_rate(record, context, seconds)
    if not math.isclose(rate, timing.tokens_per_s_median, rel_tol=tolerance):
        found = timing.tokens_per_s_median
        yield f"{found:,.0f} tokens/s are not the batch over the median step, {rate:,.0f}"


def _median_rate(record: Record, context: Context, seconds: list[float]) -> tuple[float, float]:
    """Tokens a second, and how far they may be off: a batch over the median step; or where the batch grows,
    the median of each step's, whose times are rounded."""
    shape, schedule = record.shape, schedule_of(record, context)
    if not record.timing.step_median_s:
        return 0.0, 0.0
    if schedule is None or not schedule.ramp.growing_steps or min(seconds, default=0.0) <= 0.0:
        return shape.batch_tokens / record.timing.step_median_s, 1e-9
    micro_tokens = shape.batch_tokens // max(shape.accumulation, 1)
    rates = (schedule.ramp.micros(i) * micro_tokens / s for i, s in enumerate(seconds))
    return statistics.median(rates), ROUNDING_S / record.timing.step_median_s


def compile_cap(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Compiling stays below the track's limit."""
    spent = stored.record.timing.ledger.get("compile", 0.0)
    if context.track is not None and spent > (limit := context.track.limits.compile_seconds):
        yield f"compiled for {spent:.0f} s, the track allows {limit:.0f}"


def memory(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Peak memory was read: it holds the float32 weights and fits the device."""
    record = stored.record
    peak, device = record.memory.peak_bytes, record.machine.facts.get("device_memory_bytes")
    floor = 4 * record.shape.parameters_total // max(record.shape.world_size, 1)
    if peak <= 0:
        yield "peak memory is 0"
    elif peak < floor:
        yield f"peak memory {peak:,} bytes, its weights alone take {floor:,}"
    if not record.memory.method.strip():
        yield "peak memory has no method by which it was read"
    if isinstance(device, int) and peak > device:
        yield f"peak memory {peak:,} bytes, the device has {device:,}"


def memory_cap(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Peak memory stays below the track's cap, where it has one."""
    cap = context.track.limits.peak_bytes if context.track is not None else None
    if cap is not None and stored.record.memory.peak_bytes > cap:
        yield f"peak memory {stored.record.memory.peak_bytes:,} bytes, the track allows {cap:,}"


def cost(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Dollars are the official time at the track's price; energy is positive where it was read."""
    record = stored.record
    if record.energy.joules is not None and not 0 < record.energy.joules < math.inf:
        yield f"{record.energy.joules} J were used"
    if context.track is None:
        return
    hardware = context.track.hardware
    price = hardware.device_count * hardware.dollars_per_device_hour
    dollars = record.timing.official_s / 3600 * price
    if not _equal(dollars, record.energy.dollars or 0.0):
        yield f"cost {record.energy.dollars or 0.0:.4f} dollars, the track's price makes it {dollars:.4f}"
