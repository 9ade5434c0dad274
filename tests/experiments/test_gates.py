"""The gate: each criterion passes and fails on records made for it, and the decision follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.experiments.gates import Criterion, Evidence, decide, judge
from bench.experiments.series import Series, two_series
from bench.experiments.statistics import Prior
from bench.records.schema import Record
from tests.experiments.depths import judged
from tests.experiments.runs import changed, run_of, series

PRIOR = Prior(0.001, 19.0, "test")
BASE = series("base", [2.50, 2.501, 2.499])


def faster(seconds: float = 13.0, bpbs: Sequence[float] = (2.50, 2.501, 2.499)) -> list[Record]:
    return series("new", list(bpbs), seconds)


def evidence(candidate: list[Record], base: list[Record] = BASE, **others: Any) -> Evidence:
    one, other = two_series([*base, *candidate], "base", "new", None)
    facts: dict[str, Any] = {"better": "lower", "target": None, "score_prior": PRIOR, "time_prior": None}
    facts["miniseries"] = judged(-0.01, -0.01, -0.01)
    return Evidence(baseline=one, candidate=other, **(facts | others))


def outcomes(given: Evidence) -> dict[str, str]:
    return {c.number: c.outcome for c in judge(given)}


def decision(given: Evidence) -> str:
    return decide(judge(given))[0]


def test_a_faster_equal_candidate_that_generalises_is_promoted() -> None:
    given = evidence(faster())
    assert outcomes(given) == {
        "7.1.1": "not applicable",
        **dict.fromkeys(("7.1.2", "7.1.3", "7.1.4", "7.1.5", "7.1.6", "6.2", "6.3", "6.4", "7.4"), "pass"),
    }
    assert decision(given) == "promote"


def test_the_target_is_reached_sooner_or_not() -> None:
    for seconds, outcome in ((13.0, "pass"), (15.0, "fail"), (17.0, "fail")):
        given = evidence(faster(seconds), target=2.6)
        assert outcomes(given)["7.1.1"] == outcome
        assert outcomes(given)["7.1.2"] == "not applicable"
    assert decision(evidence(faster(13.0), target=2.6)) == "promote"
    assert decision(evidence(faster(17.0), target=2.6)) == "reject"


def test_a_target_that_neither_reaches_leaves_it_to_the_wall_time() -> None:
    assert outcomes(evidence(faster(), target=2.0))["7.1.1"] == "not applicable"
    assert outcomes(evidence(faster(), target=2.0))["7.1.2"] == "pass"


def test_a_target_that_only_the_baseline_reaches_is_a_failure() -> None:
    given = evidence(faster(bpbs=(2.503, 2.503, 2.503)), target=2.502)
    assert outcomes(given)["7.1.1"] == "fail"
    assert decision(given) == "reject"


@pytest.mark.parametrize(
    ("candidate", "number", "decided"),
    [
        (faster(14.8), "7.1.2", "optional"),
        (faster(16.0), "7.1.2", "reject"),
        ([*faster(), run_of("new", 3, None)], "7.1.3", "reject"),
        ([changed(r, "scores", final_train_loss_smoothed=99.0) for r in faster()], "7.1.5", "reject"),
        (faster(bpbs=(2.51, 2.511, 2.509)), "7.1.6", "reject"),
        ([changed(r, "shape", compiled=False) for r in faster()], "6.3", "reject"),
        ([changed(r, "curves", losses=[9.0] * 64) for r in faster()], "6.2", "reject"),
    ],
)
def test_each_criterion_fails_for_its_own_reason(candidate: list[Record], number: str, decided: str) -> None:
    given = evidence(candidate, [changed(r, "shape", compiled=True) for r in BASE])
    found = {c.number: c for c in judge(given)}
    assert found[number].outcome == "fail"
    assert found[number].why
    assert decision(given) == decided


@pytest.mark.parametrize(
    ("others", "number", "decided"),
    [
        ({"miniseries": judged(-0.01, -0.01, 0.01)}, "6.4", "reject"),
        ({"concerns": ("three more levers for 1 %",)}, "7.4", "reject"),
        ({"record_problems": ("the event log is another's",)}, "7.1.4", "reject"),
    ],
)
def test_what_rolls_a_candidate_back(others: dict[str, Any], number: str, decided: str) -> None:
    given = evidence(faster(), **others)
    assert outcomes(given)[number] == "fail"
    assert decision(given) == decided


def test_what_is_not_shown_keeps_it_optional() -> None:
    assert decision(evidence(faster(), miniseries=None)) == "optional"
    assert decision(evidence(faster(), miniseries=judged(0.0, 0.0, 0.0))) == "optional"  # faster, no better
    assert decision(evidence(faster()[:1])) == "optional"  # one seed in common
    wide = evidence(faster(), score_prior=Prior(0.05, 19.0, "noisy"))
    assert outcomes(wide)["6.2"] == "not shown"
    assert decision(wide) == "optional"


def test_a_candidate_of_diverged_runs_only_is_rejected() -> None:
    given = evidence([run_of("new", i, None) for i in range(2)])
    assert decision(given) == "reject"


def test_harm_outweighs_everything() -> None:
    def criterion(number: str, outcome: Any) -> Criterion:
        return Criterion(number=number, name="x", outcome=outcome, figures={}, why="w")

    assert decide([criterion("7.1.1", "pass"), criterion("7.1.6", "fail")])[0] == "reject"
    assert decide([criterion("7.1.1", "pass"), criterion("6.4", "not shown")])[0] == "optional"
    assert decide([criterion("7.1.1", "pass"), criterion("7.1.2", "not applicable")])[0] == "promote"


def test_the_figures_are_those_of_the_records() -> None:
    found = {c.number: c.figures for c in judge(evidence(faster(13.0)))}
    assert found["7.1.2"]["time_ratio"] == pytest.approx(13.5 / 15.5, rel=1e-3)
    assert found["7.1.6"]["rise"] == pytest.approx(0.0)
    assert isinstance(evidence(faster()).baseline, Series)
