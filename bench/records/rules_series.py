"""Rules about the runs beside a record: seeds complete and distinct, one set-up, what figures can tell."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records.equivalence import equivalence
from bench.records.rules_context import Context, age
from bench.records.schema import Record
from bench.records.store import StoredRecord

MAX_NAMED = 3


def distinct_weights(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Runs of different seeds end with different weights."""
    record = stored.record
    for other in context.series:
        same = other.scores.weights_sha256 == record.scores.weights_sha256 != ""
        if same and other.identity.seed != record.identity.seed and age(other) < age(record):
            yield f"its weights are those of seed {other.identity.seed_index}, bit for bit"


def distinct_logs(stored: StoredRecord, context: Context) -> Iterator[str]:
    """No two records are made from one run."""
    record = stored.record
    for other in context.same_log:
        if other is not record and context.events is not None:
            yield f"its event log is that of {other.identity.recipe}'s seed {other.identity.seed_index}"


def repeated_seed(stored: StoredRecord, context: Context) -> Iterator[str]:
    """A seed runs once: of several runs the first counts, whatever it came to."""
    index = stored.record.identity.seed_index
    first = min((one for one in context.series if one.identity.seed_index == index), key=age)
    if first is not stored.record:
        yield f"seed {index} was run before, at {first.created}; that run counts"


def complete_seeds(stored: StoredRecord, context: Context) -> Iterator[str]:
    """Every seed of the track has a record, and no run is beyond them."""
    if context.track is None or not _is_first(stored.record, context):
        return
    count, ran = context.track.seeds.count, {one.identity.seed_index for one in context.series}
    missing = sorted(set(range(count)) - ran)
    if missing:
        yield f"seeds {', '.join(map(str, missing))} of {count} have no record: the row is provisional"
    if ran and max(ran) >= count:
        yield f"{sum(index >= count for index in ran)} seed(s) beyond the track's {count}"


def one_setup(stored: StoredRecord, context: Context) -> Iterator[str]:
    """The runs of a row share plan, code, machine and tokenizer."""
    if not _is_first(stored.record, context):
        return
    setups = [_setup(record) for record in context.series]
    for what in setups[0]:
        if len({setup[what] for setup in setups}) > 1:
            yield f"its runs differ in {what}"


def _setup(record: Record) -> dict[str, str]:
    facts = record.machine.facts
    return {
        "plan": record.identity.plan_sha256,
        "code": f"{record.identity.git_commit} {record.identity.git_dirty_sha256}",
        "machine": f"{facts.get('device_name')} {facts.get('cpu_cores')} {facts.get('hostname_sha256')}",
        "software": str(sorted(facts["versions"].items())) if isinstance(facts.get("versions"), dict) else "",
        "tokenizer": record.data.tokenizer_sha256,
    }


def inert(stored: StoredRecord, context: Context) -> Iterator[str]:
    """A lever that is on does something."""
    idle = sorted(lever for lever, activity in stored.record.features.items() if activity == 0.0)
    if idle:
        yield f"on, and changed nothing: {', '.join(idle)}"


def significance(stored: StoredRecord, context: Context) -> Iterator[str]:
    """A row is told apart from its neighbours, or the difference is no claim (Welch, 95 %, two-sided)."""
    if not _is_first(stored.record, context):
        return
    alike = context.alike.get(id(context.series), [])
    if alike:
        more = f" and {len(alike) - MAX_NAMED} more" if len(alike) > MAX_NAMED else ""
        yield f"not told apart from {', '.join(alike[:MAX_NAMED])}{more}: no claim between them holds"


def systems_only(stored: StoredRecord, context: Context) -> Iterator[str]:
    """What claims to be systems-only alters no field of the method, and no score beyond the margin."""
    if context.track is None or not _is_first(stored.record, context):
        return
    claim = equivalence(context.series, context.field, context.track)
    if claim is not None and claim.verdict != "equivalent":
        yield claim.says


def _is_first(record: Record, context: Context) -> bool:
    """Rules about a series speak once, by its first record."""
    return context.series[0] is record
