"""How many steps fit a time horizon, judged anew before each step."""

from __future__ import annotations

# Steps before the time of one is known well enough to end the schedules by it.
UNTIMED_STEPS = 3


def steps_within(budget_s: float, step: int, spent_s: float, estimate: int) -> float:
    """Steps of a whole run of `budget_s`; at most `step` when the run is over.

    A further step is taken while half of one of average length still fits: the last ends within half a
    step of the budget.

    Args:
        step: steps done, in `spent_s`.
        estimate: the plan's number of steps, used while few were timed.
    """
    if not step:
        return max(estimate, 1)
    left = (budget_s - spent_s) / (spent_s / step)
    if left <= 0.5:
        return step
    return max(estimate, step + 1) if step < UNTIMED_STEPS else step + left
