"""`bench perf-levers`: which submissions are levers, what is refused, what is printed."""

from __future__ import annotations

import msgspec
import pytest

from bench import perf_levers
from bench.errors import RecipeError
from bench.perf_levers import LeverCost, lever_recipes, levers_table, measure_levers
from bench.spec.recipe import Compile
from bench.spec.submission import differences, load
from bench.spec.workspace import Workspace
from kernels.bench_measure import Spread
from tests import tiny
from tests.spec.recipes import ROOT

SPACE = Workspace(root=ROOT, data=ROOT / ".data")


def cost(name: str, times: float, peak_bytes: int) -> LeverCost:
    """Of a lever whose steps take `times` the base's second."""
    return LeverCost(
        name=name,
        step_s=Spread(times, times, times),
        base_step_s=Spread(1.0, 1.0, 1.0),
        times_base=Spread(times, times - 0.01, times + 0.01),
        peak_bytes=peak_bytes,
        base_peak_bytes=2**30,
    )


def test_every_lever_is_a_delta_of_the_base() -> None:
    base = load(SPACE.submissions / "d4.toml").recipe
    levers = lever_recipes(SPACE)
    assert {"bigram", "muon-plus", "qk-clip-weight", "z-loss"} <= set(levers)
    assert all(differences(base, recipe) for recipe in levers.values())


def test_an_unknown_lever_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(perf_levers, "_alone", measured)
    with pytest.raises(RecipeError, match="bigrams") as error:
        measure_levers(SPACE, ["bigrams"], 3, lambda _: None)
    assert "bigram" in error.value.hint


def test_the_table_has_the_dearest_first() -> None:
    lines = levers_table([cost("cheap", 1.01, 2**30), cost("dear", 1.2, 2**30 + 2**20)]).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["dear", "cheap"]
    assert lines[2].split()[-1] == "+1"
    assert "1.190-1.210" in lines[2]


def test_steps_are_timed_in_turn() -> None:
    """The real thing in miniature, without the processes: one layer, eager, two rounds."""
    recipe = load(SPACE.submissions / "d4.toml").recipe
    with pytest.MonkeyPatch.context() as patch, tiny.torchs_settings_kept():
        patch.setattr(perf_levers, "DEPTH", 1)
        patch.setattr(perf_levers, "ROWS", 1)
        eager = msgspec.structs.replace(recipe, compile=Compile(enabled=False))
        first, second = perf_levers._steps_in_turn(SPACE, [eager, eager], 2)
    assert len(first) == len(second) == 2
    assert all(seconds > 0.0 for seconds in first + second)
