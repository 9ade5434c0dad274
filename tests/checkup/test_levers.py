"""`bench perf-levers`: which submissions are levers, what is refused, what is timed beside what."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from bench.checkup import levers as checkup_levers
from bench.checkup.lever_costs import LIMITS
from bench.checkup.levers import FOUR, NOISE, levers, measure_levers
from bench.errors import RecipeError
from bench.spec.recipe import Compile
from bench.spec.submission import differences, load
from bench.spec.workspace import Workspace
from tests import tiny
from tests.spec.recipes import ROOT

SPACE = Workspace(root=ROOT, data=ROOT / ".data")


@pytest.fixture
def in_miniature() -> Iterator[None]:
    """One layer and one row; torch's settings are afterwards as they were."""
    with pytest.MonkeyPatch.context() as patch, tiny.torchs_settings_kept():
        patch.setattr(checkup_levers, "DEPTH", 1)
        patch.setattr(checkup_levers, "ROWS", 1)
        patch.setattr(checkup_levers, "LIMITED_ROWS", 1)
        yield


def test_every_lever_is_a_delta_of_what_it_is_compared_with() -> None:
    found = levers(SPACE)
    assert {"bigram", "muon-plus", "gqa", "fp16", "qk-clip-weight", "z-loss"} <= set(found)
    assert all(differences(lever.control, lever.recipe) for lever in found.values())
    assert found["bigram"].control_name == "d4"
    assert found["qk-clip-logit"].control_name == "d4-no-qk-norm"
    assert "20-upstream" not in found
    assert "20-bigram" not in found


def test_every_limit_is_of_something_that_is_measured() -> None:
    assert set(LIMITS) <= {FOUR, *levers(SPACE)}


def test_an_unknown_lever_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(checkup_levers, "_alone", measured)
    with pytest.raises(RecipeError, match="bigrams") as error:
        measure_levers(SPACE, ["bigrams"], 3, lambda _: None)
    assert "bigram" in error.value.hint


def test_steps_are_timed_in_turn(in_miniature: None) -> None:
    """The real thing in miniature, without the processes: one layer, eager, two rounds."""
    recipe = load(SPACE.submissions / "d4.toml").recipe
    eager = msgspec.structs.replace(recipe, compile=Compile(enabled=False))
    first, second, peak_bytes = checkup_levers._measured(SPACE, eager, eager, 1, 2)
    assert len(first) == len(second) == 2
    assert all(seconds > 0.0 for seconds in first + second)
    assert peak_bytes > 2**20


def test_the_bare_muon_step_is_timed_beside_all_four(in_miniature: None) -> None:
    recipe = load(SPACE.submissions / "d4.toml").recipe
    eager = msgspec.structs.replace(recipe, compile=Compile(enabled=False))
    four, bare = checkup_levers._muon_steps_in_turn(SPACE, eager, 3)
    assert len(four) == len(bare) == 3
    assert min(four + bare) > 0.0


def test_each_is_first_in_every_second_round() -> None:
    class Waiting:
        """A device that has nothing to wait for."""

        def synchronize(self) -> None:
            """Nothing."""

    calls: list[str] = []
    one, other = (lambda: calls.append("one")), (lambda: calls.append("other"))
    first, second = checkup_levers._in_turn(Waiting(), one, other, 4)  # type: ignore[arg-type]
    assert calls == ["other", "one", "one", "other"] * 2
    assert len(first) == len(second) == 4


def test_costs_are_reported_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limited levers are timed longer, in longer steps; a control's peak is measured once for each."""
    asked: list[tuple[str, int]] = []

    def alone(function: object, *arguments: object) -> object:
        name = function.__name__  # type: ignore[attr-defined]
        rounds = arguments[-1] if isinstance(arguments[-1], int) else 0
        asked.append((name, rounds))
        return (
            2**30
            if name == "_peak_bytes"
            else ([1.1] * rounds, [1.0] * rounds, 2**30)[: 3 - ("muon" in name)]
        )

    monkeypatch.setattr(checkup_levers, "_alone", alone)
    reported: list[str] = []
    costs = measure_levers(SPACE, [NOISE, FOUR, "z-loss", "tied"], 6, lambda cost: reported.append(cost.name))
    assert [cost.name for cost in costs] == reported == [NOISE, FOUR, "z-loss", "tied"]
    assert [cost.num_pairs for cost in costs] == [6, 12, 12, 6]
    assert [cost.verdict for cost in costs] == ["", "over", "over", ""]
    assert [name for name, _ in asked].count("_peak_bytes") == 2
    assert costs[1].peak_bytes is None
    every = {cost.name for cost in measure_levers(SPACE, [], 6, lambda _: None)}
    assert {*levers(SPACE), NOISE, FOUR} - every == {"cosine", "sqrt-warmdown", "batch-warmup"}
