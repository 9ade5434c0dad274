"""Steps within a time budget: the run ends near it, and the estimate of its length settles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.training.horizon import steps_within

durations = st.lists(st.floats(0.01, 0.2), min_size=1, max_size=7)


@given(budget_s=st.floats(1.0, 20.0), cycle=durations, estimate=st.integers(0, 5000))
def test_the_last_step_ends_near_the_budget(budget_s: float, cycle: list[float], estimate: int) -> None:
    step, spent_s, totals = 0, 0.0, []
    while step < (total := steps_within(budget_s, step, spent_s, estimate)):
        totals.append(total)
        spent_s += cycle[step % len(cycle)]
        step += 1
    assert step >= 1
    assert abs(spent_s - budget_s) <= max(cycle)
    # The schedules were at their end, but for the time of one slow step.
    assert totals[-1] - step <= max(cycle) / min(cycle)


@given(estimate=st.integers(0, 100), spent_s=st.floats(0.1, 10.0))
def test_one_slow_step_ends_the_run(estimate: int, spent_s: float) -> None:
    assert steps_within(spent_s, 1, spent_s, estimate) == 1
    assert steps_within(0.1, 0, 0.0, estimate) >= 1


@given(step=st.integers(3, 1000), step_s=st.floats(0.01, 1.0), budget_s=st.floats(1.0, 1e4))
def test_equal_steps_give_the_exact_number(step: int, step_s: float, budget_s: float) -> None:
    total = steps_within(budget_s, step, step * step_s, estimate=7)
    assert total == step or abs(total - budget_s / step_s) < 1e-6 * total
