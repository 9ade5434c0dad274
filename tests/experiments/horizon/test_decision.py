"""The decision record: its columns, its CSV, and what is left empty."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest

from bench.experiments.horizon.calibration import infer
from bench.experiments.horizon.decision import COLUMNS, csv_text, decide
from bench.experiments.time_to_target import TimeToTarget
from tests.experiments.horizon.test_calibration import PARAMS, of_value, runs
from tests.experiments.horizon.test_measure import measured
from tests.experiments.runs import run_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_columns_are_the_plans_in_their_order() -> None:
    assert (
        *("timestamp_utc", "git_commit", "run_id", "seed", "dataset_id", "target_metric_name"),
        *("target_metric_threshold", "n_scaling_params", "inferred_data_scaling_exponent"),
        *("inferred_target_tokens", "inferred_target_param_data_ratio", "confirmation_ratio", "chosen_ratio"),
        *("lane_b_decision", "time_to_target_sec_measured", "time_to_target_sec_extrapolated"),
        *("min_val_bpb", "tok_per_sec_median", "dt_median_ms", "status", "notes"),
    ) == COLUMNS
    assert len(COLUMNS) == 21


def test_a_row_says_what_was_inferred_and_run() -> None:
    inference = infer(of_value(0.3), runs(), 0.5 + 40.0 * 9e6**-0.3, PARAMS)
    longest = run_of("a", 1, 2.5)
    times = [TimeToTarget(method="measured", seconds=20.0), TimeToTarget(method="bracketed", seconds=15.0)]
    made = decide(measured(num=20_000), inference, "val_bpb", longest, times, NOW)
    row = next(csv.DictReader(io.StringIO(csv_text([made]))))
    assert tuple(row) == COLUMNS
    assert row["timestamp_utc"] == "2026-03-01T12:00:00Z"
    assert row["run_id"].startswith("cpu-quick/a/1-")
    assert row["seed"] == str(longest.identity.seed)
    assert row["dataset_id"] == "folder:x@cccccccccccc/bpe-9"
    assert float(row["inferred_target_tokens"]) == pytest.approx(9e6, rel=1e-6)
    assert float(row["confirmation_ratio"]) == pytest.approx(9.45)
    assert (row["lane_b_decision"], row["status"]) == ("inferred", "ok")
    assert (row["time_to_target_sec_measured"], row["time_to_target_sec_extrapolated"]) == ("20.0", "15.0")
    assert float(row["dt_median_ms"]) == pytest.approx(1e3 * longest.timing.step_median_s)


def test_what_is_not_known_is_empty() -> None:
    made = decide(measured(num=20_000), infer(None, [], None, None), "val_bpb", None, [], NOW)
    row = next(csv.DictReader(io.StringIO(csv_text([made]))))
    empty = {column for column, cell in row.items() if cell == ""}
    assert {"git_commit", "run_id", "seed", "inferred_target_tokens", "min_val_bpb"} <= empty
    assert "0" not in {cell for column, cell in row.items() if column != "chosen_ratio"}
    assert (row["chosen_ratio"], row["lane_b_decision"], row["status"]) == ("10.5", "fallback", "no exponent")
    assert "for want of a checkpoint" in row["notes"]
