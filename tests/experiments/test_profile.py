"""Performance profiles: shares that rise with the factor, and a score that is their mean."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.profile import Problem, profile_chart, profile_score, ratios, share_within

SECONDS = st.none() | st.floats(0.1, 1000)
PROBLEMS = st.lists(
    st.builds(Problem, st.just("d4"), st.fixed_dictionaries({"a": SECONDS, "b": SECONDS})),
    min_size=1,
    max_size=6,
)


@given(PROBLEMS)
def test_a_profile_rises_and_someone_is_best_wherever_it_is_solved(problems: list[Problem]) -> None:
    found = ratios(problems)
    for place, problem in enumerate(problems):
        solved = any(seconds is not None for seconds in problem.seconds.values())
        assert min(values[place] for values in found.values()) == (1.0 if solved else math.inf)
    for values in found.values():
        shares = [share_within(values, 1.0 + step / 20) for step in range(61)]
        assert shares == sorted(shares)
        # The integral between 1 and 4 by its lower and upper sums.
        assert sum(shares[:-1]) / 60 - 1e-9 <= profile_score(values) <= sum(shares[1:]) / 60 + 1e-9


@given(PROBLEMS)
def test_a_profile_is_drawn_whatever_is_solved(problems: list[Problem]) -> None:
    root = ElementTree.fromstring(profile_chart(problems, "t", {"a": "one", "b": "other"}))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


def test_a_method_twice_as_slow_scores_two_thirds() -> None:
    problems = [Problem(f"d{depth}", {"a": 10.0, "b": 20.0}) for depth in (4, 6, 8)]
    found = ratios(problems)
    assert profile_score(found["a"]) == 1.0
    assert profile_score(found["b"]) == pytest.approx(2 / 3)
    assert "other, mean to factor 4: 0.67" in profile_chart(problems, "t", {"a": "one", "b": "other"})
