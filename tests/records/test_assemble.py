"""The record's derived figures: step times, smoothing, remarks, and what resuming makes unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.run as conductor
from bench.data.loader import Progress as Coverage
from bench.host.power import Energy
from bench.host.provenance import Provenance
from bench.records.assemble import Measured, _reached, _smoothed, assemble, step_seconds
from bench.records.progress import RunProgress
from bench.records.schema import decode, encode
from bench.spec.track import Score
from tests import tiny

groups = st.lists(st.tuples(st.integers(1, 5), st.floats(0.001, 10.0)), min_size=1, max_size=20)


@given(groups=groups)
def test_steps_logged_together_share_their_time(groups: list[tuple[int, float]]) -> None:
    logged, step, seconds = [], 0, 0.0
    for num_steps, duration_s in groups:
        step, seconds = step + num_steps, seconds + duration_s
        logged.append((step, seconds))
    found = step_seconds(logged)
    assert len(found) == step
    assert sum(found) == pytest.approx(seconds)
    assert found[0] == pytest.approx(groups[0][1] / groups[0][0])
    assert found[-1] == pytest.approx(groups[-1][1] / groups[-1][0], rel=1e-6, abs=1e-9)


@given(losses=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=50))
def test_smoothing_is_an_average_that_favours_the_end(losses: list[float]) -> None:
    smoothed = _smoothed(losses)
    assert smoothed is not None
    assert min(losses) - 1e-9 <= smoothed <= max(losses) + 1e-9
    weights = [0.9 ** (len(losses) - 1 - i) for i in range(len(losses))]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert smoothed == pytest.approx(expected)


def test_without_losses_nothing_is_smoothed() -> None:
    assert _smoothed([]) is None


@pytest.mark.parametrize(
    ("value", "target", "better", "expected"),
    [(0.7, 0.71, "lower", True), (0.72, 0.71, "lower", False), (0.26, 0.2565, "higher", True),
     (0.25, 0.2565, "higher", False), (0.7, 0.0, "lower", None), (None, 0.71, "lower", None)],
)  # fmt: skip
def test_the_target(value: float | None, target: float, better: Any, expected: bool | None) -> None:
    assert _reached(value, Score(target=target, better=better)) is expected


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """What a real run measured."""
    seen: list[Measured] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conductor, "assemble", lambda measured: seen.append(measured) or assemble(measured))
        tiny.run_here(tiny.checkout(tmp_path_factory.mktemp("run")))
    return seen[0]


def remarks(measured: Measured, **changes: Any) -> list[str]:
    """Warnings of the record with these fields changed."""
    return list(assemble(measured._replace(**changes)).warnings)


def test_each_remark_has_its_cause(measured: Measured) -> None:
    steady = RunProgress(step=4, losses=[1.0] * 4, logged=[(i, float(i)) for i in range(1, 5)])
    ledger = dict.fromkeys(measured.ledger, 0.0) | {"train": 4.0, "wall_s": 4.0}
    quiet = measured._replace(
        progress=steady, ledger=ledger, num_competing=0, provenance=Provenance("c", ""), warnings=[]
    )
    assert remarks(quiet) == []
    unsteady = RunProgress(step=4, losses=[1.0] * 4, logged=[(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0)])
    energy = Energy(joules=5.0, method="nvml", reason=None, throttle_reasons=("power cap",))
    causes: list[tuple[dict[str, Any], str]] = [
        ({"progress": unsteady}, "unsteady: p90"),
        ({"ledger": ledger | {"train": 3.0, "data_wait": 1.0}}, "data wait is 25.0%"),
        ({"num_competing": 2}, "2 other process"),
        ({"provenance": Provenance("c", "d")}, "the code differs"),
        ({"warnings": ["a note"]}, "a note"),
        ({"outcome": measured.outcome._replace(coverage=Coverage(1.5, 10, 20))}, "1.50 epochs"),
        ({"outcome": measured.outcome._replace(energy=energy)}, "held back: power cap"),
    ]
    for changes, words in causes:
        (remark,) = remarks(quiet, **changes)
        assert words in remark
    assert assemble(quiet._replace(outcome=measured.outcome._replace(energy=energy))).energy.joules == 5.0


def test_a_resumed_run_adds_what_was_carried(measured: Measured) -> None:
    progress = RunProgress(
        step=2,
        losses=[1.0, 1.0],
        logged=[(1, 3.0), (2, 4.0)],
        carried_s={"train": 3.0, "eval": 0.5},
        num_resumes=1,
    )
    ledger = dict.fromkeys(measured.ledger, 0.0) | {"train": 1.0, "wall_s": 1.0}
    energy = Energy(joules=5.0, method="nvml", reason=None)
    outcome = measured.outcome._replace(energy=energy)
    record = assemble(measured._replace(progress=progress, ledger=ledger, outcome=outcome))
    assert record.timing.official_s == 4.0
    assert record.timing.wall_s == sum(record.timing.ledger.values()) == 4.5
    assert (record.energy.joules, record.energy.method) == (None, "none")


def test_what_is_assembled_reads_back(measured: Measured, tmp_path: Path) -> None:
    record = decode(encode(assemble(measured)))
    assert encode(decode(encode(record))) == encode(record)
    assert record.curves.losses == measured.progress.losses
    assert record.shape.total_flops == float(record.shape.flops_per_token * record.shape.tokens)
    assert record.scores.weights_sha256 == measured.outcome.probes.weights_sha256  # type: ignore[union-attr]
    assert "weights_sha256" not in record.scores.probes
