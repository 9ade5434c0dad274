"""The rules as code: one table, each rule a function with an id and a reason. Imports no torch.

RULES.md lists the same ids; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bench.records import rules_identity, rules_run, rules_scores, rules_series, rules_shape
from bench.records.rules_context import Context, contexts
from bench.records.store import StoredRecord
from bench.spec.track import NamedTrack

Check = Callable[[StoredRecord, Context], Iterator[str]]
MAX_REASON = 300  # characters: a reason may quote a stranger's text


class Rule(NamedTuple):
    """What it is called, whether it refuses a record or only remarks on it, and its check."""

    id: str
    refuses: bool
    check: Check


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule has against one record."""

    rule: str
    refuses: bool
    reason: str


RULES: tuple[Rule, ...] = (
    Rule("schema", True, rules_identity.schema),
    Rule("canonical-bytes", True, rules_identity.canonical_bytes),
    Rule("file-name", True, rules_identity.file_name),
    Rule("file-size", True, rules_identity.file_size),
    Rule("ledger", True, rules_run.ledger),
    Rule("official-time", True, rules_run.official_time),
    Rule("step-times", True, rules_run.step_times),
    Rule("mfu", True, rules_shape.mfu),
    Rule("roofline", True, rules_shape.roofline),
    Rule("compile-cap", True, rules_run.compile_cap),
    Rule("memory", True, rules_run.memory),
    Rule("memory-cap", True, rules_run.memory_cap),
    Rule("cost", True, rules_run.cost),
    Rule("recipe-hash", True, rules_identity.recipe_hash),
    Rule("asked-shape", True, rules_shape.asked_shape),
    Rule("derived-shape", True, rules_shape.derived_shape),
    Rule("parameter-cap", True, rules_shape.parameter_cap),
    Rule("devices", True, rules_shape.devices),
    Rule("kernels", True, rules_shape.kernels),
    Rule("proofs", True, rules_shape.proofs),
    Rule("compiled", True, rules_shape.compiled),
    Rule("dispatched", True, rules_shape.dispatched),
    Rule("finite", True, rules_scores.finite),
    Rule("score", True, rules_scores.score),
    Rule("target", True, rules_scores.target),
    Rule("bits-per-byte", True, rules_scores.bits_per_byte),
    Rule("whole-text", True, rules_scores.whole_text),
    Rule("data-disjoint", True, rules_scores.data_disjoint),
    Rule("same-text", True, rules_scores.same_text),
    Rule("same-tokenizer", True, rules_scores.same_tokenizer),
    Rule("probes", True, rules_scores.probes),
    Rule("core", True, rules_scores.core),
    Rule("core-whole", True, rules_scores.core_whole),
    Rule("event-chain", True, rules_run.event_chain),
    Rule("run-identity", True, rules_run.run_identity),
    Rule("event-curves", True, rules_run.event_curves),
    Rule("track", True, rules_identity.track),
    Rule("machine-class", True, rules_identity.machine_class),
    Rule("metric-id", True, rules_identity.metric_id),
    Rule("assigned-seed", True, rules_identity.assigned_seed),
    Rule("provenance", True, rules_identity.provenance),
    Rule("distinct-weights", True, rules_series.distinct_weights),
    Rule("distinct-logs", True, rules_series.distinct_logs),
    Rule("known-code", False, rules_identity.known_code),
    Rule("repeated-seed", False, rules_series.repeated_seed),
    Rule("complete-seeds", False, rules_series.complete_seeds),
    Rule("one-setup", False, rules_series.one_setup),
    Rule("inert", False, rules_series.inert),
    Rule("significance", False, rules_series.significance),
    Rule("systems-only", False, rules_series.systems_only),
)


def findings(
    stored: Sequence[StoredRecord], tracks: Mapping[str, NamedTrack], rules: Sequence[Rule] = RULES
) -> list[list[Finding]]:
    """What the rules have against each record, the others being its neighbours."""
    return [
        [
            Finding(rule=rule.id, refuses=rule.refuses, reason=_plain(reason))
            for rule in rules
            for reason in _reasons(rule, one, context)
        ]
        for one, context in contexts(stored, tracks)
    ]


def _reasons(rule: Rule, stored: StoredRecord, context: Context) -> list[str]:
    """All that a rule says; a figure that arithmetic cannot hold is a reason like any other."""
    try:
        return list(rule.check(stored, context))
    except ArithmeticError as error:
        return [f"a figure is beyond all bounds: {error}"]


def _plain(reason: str) -> str:
    """One printable line: what a record says may hold what a terminal obeys."""
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in reason)
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."
