"""The experiments' table: its columns in its order, and nothing that was not measured."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from bench import cli
from bench.board.export import COLUMNS, csv_of
from bench.records.schema import Record
from bench.spec.track import NamedTrack
from tests.board.test_rows import TARGET, TRACK, runs
from tests.records.sample import changed, sample


def lines(track: NamedTrack, records: list[Record]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of([track], records))))


def test_the_columns_are_the_protocols() -> None:
    assert csv_of([TRACK], []) == (
        "timestamp,git_commit,experiment_name,seed,depth,max_seq_len,device_batch_size,total_batch_size,"
        "target_param_data_ratio,warmdown_ratio,warmdown_shape,target_metric_name,target_metric_threshold,"
        "time_to_target_sec_measured,time_to_target_sec_extrapolated,extrapolation_method,tok_per_sec_median,"
        "dt_median_ms,wall_time_sec,final_train_loss,min_val_bpb,peak_mem_mib,status\n"
    )
    assert len(COLUMNS) == 23


def test_a_run_is_a_line() -> None:
    [line] = lines(TRACK, runs(2.5))
    assert line["experiment_name"] == "quick"
    assert (line["depth"], line["max_seq_len"], line["total_batch_size"]) == ("4", "256", "4096")
    assert (line["min_val_bpb"], line["peak_mem_mib"], line["status"]) == ("2.5", "900.0", "ok")
    assert float(line["dt_median_ms"]) == pytest.approx(15000 / 64)
    assert (line["warmdown_ratio"], line["warmdown_shape"]) == ("0.65", "linear")


def test_what_was_not_measured_is_empty() -> None:
    [line] = lines(TRACK, runs(2.5))
    empty = {name for name, value in line.items() if not value}
    assert empty == {
        "target_param_data_ratio",
        "target_metric_threshold",
        "time_to_target_sec_measured",
        "time_to_target_sec_extrapolated",
        "extrapolation_method",
    }
    [lost] = lines(TRACK, runs(None))
    assert {"final_train_loss", "min_val_bpb"} <= {name for name, value in lost.items() if not value}
    assert lost["status"] == "diverged"


def test_a_time_to_target_is_of_a_run_that_reached_it() -> None:
    hit, missed = (
        changed(one, "scores.reached_target", said)
        for one, said in zip(runs(2.4, 2.6), (True, False), strict=True)
    )
    found = [line["time_to_target_sec_measured"] for line in lines(TARGET, [hit, missed])]
    assert sorted(found) == ["", "15.5"]
    assert lines(TARGET, [hit])[0]["target_metric_threshold"] == "2.5"


@pytest.mark.parametrize("name", ["=1+1", "@x", "+a", "-a", 'a"b,c', "a\nb"])
def test_a_name_is_neither_a_formula_nor_a_second_cell(name: str) -> None:
    [line] = lines(TRACK, [changed(sample()[0], "identity.recipe", name)])
    assert line["experiment_name"] == (f"'{name}" if name[0] in "=@+-" else name)
    assert line["status"] == "ok"


def test_the_order_of_the_records_does_not_matter() -> None:
    records = runs(2.5, 2.4, 2.6)
    late = msgspec.structs.replace(records[0], created="2027-01-01T00:00:00Z")
    assert csv_of([TRACK], [late, *records]) == csv_of([TRACK], [*records[::-1], late])


def test_the_command_prints_the_shipped_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--csv"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("timestamp,git_commit")
    shipped = len(list((Path(cli.ROOT) / "leaderboard" / "records").glob("*/*/*.json")))
    assert len(out.splitlines()) == shipped + 1
    assert cli.main(["export"]) == 2
