"""The plan's decision record: 21 columns in their order, as a CSV row and as JSON. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from bench.experiments.horizon.calibration import Inference
from bench.experiments.horizon.measure import Statistics
from bench.experiments.time_to_target import TimeToTarget
from bench.records.schema import Record, file_stem


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One inference, decided; the fields' order is the columns'. What is not known is null, never 0."""

    timestamp_utc: str
    git_commit: str | None
    run_id: str | None
    seed: int | None
    dataset_id: str
    target_metric_name: str
    target_metric_threshold: float | None
    n_scaling_params: int | None
    inferred_data_scaling_exponent: float | None
    inferred_target_tokens: int | None
    inferred_target_param_data_ratio: float | None
    confirmation_ratio: float | None
    chosen_ratio: float
    lane_b_decision: str
    time_to_target_sec_measured: float | None
    time_to_target_sec_extrapolated: float | None
    min_val_bpb: float | None
    tok_per_sec_median: float | None
    dt_median_ms: float | None
    status: str
    notes: str


COLUMNS = Decision.__struct_fields__


def decide(
    statistics: Statistics,
    inference: Inference,
    metric: str,
    longest: Record | None,
    times: Sequence[TimeToTarget],
    now: datetime | None = None,
) -> Decision:
    """The record of an inference.

    Args:
        longest: the calibration run of the longest horizon, which gives run, seed, speed and score.
        times: to the target, by how they were come by.
    """
    stamp = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = statistics.exponent
    by_method = {time.method: time.seconds for time in times}
    tokens = inference.target_tokens
    return Decision(
        timestamp_utc=stamp,
        git_commit=longest.identity.git_commit if longest else None,
        run_id=_run_id(longest) if longest else None,
        seed=longest.identity.seed if longest else None,
        dataset_id=f"{statistics.dataset}@{statistics.corpus_sha256[:12]}/bpe-{statistics.vocab_size}",
        target_metric_name=metric,
        target_metric_threshold=inference.target,
        n_scaling_params=inference.scaling_parameters,
        inferred_data_scaling_exponent=found.value if found else None,
        inferred_target_tokens=round(tokens) if tokens is not None else None,
        inferred_target_param_data_ratio=inference.ratio,
        confirmation_ratio=inference.confirmation_ratio,
        chosen_ratio=inference.chosen_ratio,
        lane_b_decision=inference.decision,
        time_to_target_sec_measured=by_method.get("measured"),
        time_to_target_sec_extrapolated=by_method.get("bracketed", by_method.get("extrapolated")),
        min_val_bpb=longest.scores.min_val_bpb if longest else None,
        tok_per_sec_median=longest.timing.tokens_per_s_median if longest else None,
        dt_median_ms=1e3 * longest.timing.step_median_s if longest else None,
        status=inference.status,
        notes=_notes(statistics, inference),
    )


def _run_id(record: Record) -> str:
    return f"{record.identity.track}/{record.identity.recipe}/{file_stem(record)}"


def _notes(statistics: Statistics, inference: Inference) -> str:
    said = [inference.why] if inference.why else []
    if statistics.exponent is not None:
        said += statistics.exponent.says
    said += statistics.entropies.says
    return "; ".join(said)


def csv_text(decisions: Sequence[Decision]) -> str:
    """The header and a row a decision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for decision in decisions:
        writer.writerow([getattr(decision, column) for column in COLUMNS])
    return out.getvalue()
