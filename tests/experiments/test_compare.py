"""Comparisons of records: what is paired, what is resolved, what is refused, and the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import cli
from bench.errors import RecipeError
from bench.experiments.compare import compare, comparison_text, loss_chart, smoothed
from bench.experiments.series import all_series, priors, two_series
from tests.experiments.runs import run_of, series, stored
from tests.records.sample import ROOT, quick_track

BASE = series("base", [2.50, 2.51, 2.49])
BETTER = series("better", [2.40, 2.41, 2.39], seconds=14.0)
EQUAL = series("equal", [2.505, 2.495, 2.50])


def test_a_clear_gain_is_resolved_in_pairs() -> None:
    found, *_ = compare([*BASE, *BETTER, *EQUAL], "base", "better")
    score, time = found.endpoints
    assert found.shared_seeds == [0, 1, 2]
    assert score.tests[0].test == "paired moderated t"
    assert score.tests[0].estimate == pytest.approx(-0.1)
    assert score.tests[0].is_resolved
    assert score.prior is not None
    assert score.prior.dof == 2.0  # the third recipe's, not the compared ones'
    assert time.tests[0].estimate < 0.0
    text = comparison_text(found, quick_track().track)
    assert "better is better: resolved with n = 3" in text
    assert "-6" in text.split("official seconds")[1]


def test_noise_is_not_resolved_and_says_how_many_runs_would() -> None:
    found, *_ = compare([*BASE, *EQUAL], "base", "equal", effect=0.005)
    assert not found.endpoints[0].tests[0].is_resolved
    verdict = found.endpoints[0].verdict
    assert verdict.startswith("not resolvable with n = 3; n = ")
    assert int(verdict.split("n = ")[2].split(" ")[0]) > 3


def test_seeds_that_are_not_shared_are_not_paired() -> None:
    other = [run_of("other", i, bpb) for i, bpb in ((1, 2.4), (2, 2.41), (3, 2.39))]
    found, *_ = compare([*BASE, *other], "base", "other")
    assert found.shared_seeds == [1, 2]
    assert [test.test for test in found.endpoints[0].tests] == ["Welch", "pooled t", "paired t"]


def test_single_runs_without_a_calibration_tell_nothing() -> None:
    found, *_ = compare([BASE[0], EQUAL[0]], "base", "equal")
    assert found.endpoints[0].tests == ()
    assert "nothing tells" in found.endpoints[0].verdict
    assert "nothing tells" in comparison_text(found, quick_track().track)


def test_a_repeated_seed_and_the_order_of_records_change_nothing() -> None:
    again = run_of("base", 0, 1.0, created="2026-04-01T00:00:00Z")
    records = [*BASE, *EQUAL]
    assert compare([again, *reversed(records)], "base", "equal")[0] == compare(records, "base", "equal")[0]


def test_a_diverged_run_is_counted_and_not_averaged() -> None:
    found, one, _ = compare([*BASE, run_of("base", 3, None), *EQUAL], "base", "equal")
    assert one.num_diverged == 1
    assert len(found.endpoints[0].a) == 3
    assert "1 of 4 runs of base diverged" in found.notes[0]


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [("base", "base", "with itself"), ("base", "nope", "no records of nope"), ("base", "lost", "diverged")],
)
def test_what_cannot_be_compared(a: str, b: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compare([*BASE, run_of("lost", 0, None)], a, b)
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_two_texts_are_not_compared() -> None:
    other = series("other", [2.4, 2.5], corpus_sha256="d" * 64)
    with pytest.raises(RecipeError, match="no track and text in common"):
        two_series([*BASE, *other], "base", "other", None)
    assert len(all_series([*BASE, *other])) == 2


def test_the_compared_runs_are_no_part_of_their_prior() -> None:
    one, other = two_series([*BASE, *EQUAL], "base", "equal", None)
    assert priors([*BASE, *EQUAL], one, other) == (None, None)


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    assert smoothed([1.0, None, 3.0]) == [(1.0, 1.0), (3.0, 3.0)]
    assert smoothed([2.0] * 40)[-1] == (40.0, 2.0)


def test_the_chart_has_a_line_a_run() -> None:
    root = ElementTree.fromstring(loss_chart(*two_series([*BASE, *EQUAL], "base", "equal", None)))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 6


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    stored(tmp_path / "leaderboard" / "records", "base", [2.5, 2.51, 2.49])
    stored(tmp_path / "leaderboard" / "records", "better", [2.4, 2.41, 2.39])
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert (
        cli.main(["compare", "base", "submissions/better.toml", "--plot", str(tmp_path / "a" / "b.svg")]) == 0
    )
    assert "better is better" in capsys.readouterr().out
    assert (tmp_path / "a" / "b.svg").read_text().startswith("<svg")
    assert cli.main(["compare", "base", "better", "--json", "--track", "cpu-quick"]) == 0
    assert json.loads(capsys.readouterr().out)["endpoints"][0]["name"] == "val_bpb"
    assert cli.main(["compare", "base", "better", "--effect", "-1"]) == 2
    assert cli.main(["compare", "base", "better", "--plot", str(tmp_path)]) == 5
