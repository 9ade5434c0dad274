"""A calibration: what its records give, no more, and what it does to the rows."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path

import msgspec
import pytest

from bench.board.build import read_standings, write_board, write_calibration
from bench.board.calibration import LEAST_RUNS, Calibration, calibration_of
from bench.errors import BenchError, RecipeError, VerificationFailed
from bench.records.schema import Record
from bench.records.store import write_once
from bench.spec.workspace import Workspace
from tests.records.sample import ROOT, sample

SCORES = (2.50, 2.52, 2.48, 2.51, 2.49, 2.53)


def reference() -> list[Record]:
    return [sample("quick", i, bpb, train_s=15.0 + i / 10)[0] for i, bpb in enumerate(SCORES)]


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A checkout with six runs of the reference and three of another recipe."""
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    made = Workspace(root=tmp_path, data=tmp_path / ".data")
    for i, bpb in enumerate(SCORES):
        write_once(made.records, *sample("quick", i, bpb, train_s=15.0 + i / 10))
    for i in range(3):
        write_once(made.records, *sample("other", i, 2.7))
    return made


def test_it_is_the_deviation_over_seeds() -> None:
    found = calibration_of(reference())
    assert found.sigma_metric == pytest.approx(statistics.stdev(SCORES))
    assert found.sigma_log_s == pytest.approx(statistics.stdev(math.log(15.5 + i / 10) for i in range(6)))
    assert (found.num_runs, found.metric().dof, found.log_s().dof) == (6, 5, 5)
    assert calibration_of(reference()[::-1]) == found


@pytest.mark.parametrize(
    "records",
    [
        reference()[: LEAST_RUNS - 1],
        [*reference(), reference()[0]],
        [*reference(), sample("quick", 6, None)[0]],
        [*reference(), sample("quick", 6, corpus_sha256="d" * 64)[0]],
    ],
    ids=["few", "a seed twice", "diverged", "two texts"],
)
def test_what_is_no_calibration_is_refused(records: list[Record]) -> None:
    with pytest.raises(VerificationFailed):
        calibration_of(records)


def test_the_board_uses_it_and_says_so(space: Workspace) -> None:
    before = {row.recipe: row for row in read_standings(space)[-1].tables[0].rows}
    path = write_calibration(space, "cpu-quick/quick")
    assert path == space.root / "leaderboard" / "calibrations" / "cpu-quick.json"
    section = read_standings(space)[-1]
    after = {row.recipe: row for row in section.tables[0].rows}
    assert section.calibration == calibration_of(reference())
    # Three equal scores looked like certainty.
    assert before["other"].score.half_width == pytest.approx(0.0, abs=1e-9)
    assert after["other"].score.half_width > 0.01
    assert after["other"].mde == pytest.approx(
        3.608 * section.prior.sigma * math.sqrt(5 / 7 * 2 / 3), rel=1e-3
    )
    text, page, *_ = (one.read_text(encoding="utf-8") for one in write_board(space))
    for shown in (text, page):
        assert "moderated by 6 runs of quick: sigma of val" in shown


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("sigma_metric", 1e-9, "not what the records it names give"),
        ("num_runs", 60, "not what the records it names give"),
        ("records", ["0" * 64] * 6, "no record 000"),
        ("track_sha256", "0" * 64, "another version"),
        ("track", "d12-local", "another track"),
        ("schema", 2, "schema 2"),
    ],
)
def test_one_that_its_records_do_not_give_stops_the_board(
    space: Workspace, field: str, value: object, told: str
) -> None:
    path = write_calibration(space, "cpu-quick/quick")
    honest = msgspec.json.decode(path.read_bytes(), type=Calibration)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(honest, **{field: value})))
    with pytest.raises(VerificationFailed, match=told):
        write_board(space)


def test_junk_stops_the_board(space: Workspace) -> None:
    path = write_calibration(space, "cpu-quick/quick")
    path.write_text("{")
    with pytest.raises(VerificationFailed, match=r"cpu-quick\.json"):
        write_board(space)


@pytest.mark.parametrize("of", ["cpu-quick/none", "cpu-quick", "", "../quick/quick", "cpu-quick/other"])
def test_what_cannot_calibrate_writes_nothing(space: Workspace, of: str) -> None:
    with pytest.raises(BenchError) as caught:
        write_calibration(space, of)
    assert isinstance(caught.value, RecipeError | VerificationFailed)
    assert not (space.root / "leaderboard" / "calibrations").exists()
