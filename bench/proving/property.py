"""A property, and what it takes to check one: hypothesis draws the inputs, here and on any device alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

from bench.proving.subject import Subject

# Takes the subject and hypothesis' data object; returns the error as a share of its bound (`error_ratio`),
# 0.0 where it asserts something exact.
Property = Callable[[Subject, Any], float]


def check(prop: Property, subject: Subject, num_examples: int, seed: int, *, shrink: bool = True) -> float:
    """The property's worst error ratio over the examples, at most 1.

    Args:
        shrink: look for the smallest example that breaks it; minutes, where a kernel is slow.

    Raises:
        AssertionError: with the smallest example found that breaks the property, and whatever else a broken
            implementation raises.
    """
    worst = 0.0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_examples,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        phases=[hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def examples(data: Any) -> None:
        nonlocal worst
        ratio = prop(subject, data)
        assert ratio <= 1.0, f"{prop.__name__}: the error is {ratio:.3g} times its bound"
        worst = max(worst, ratio)

    examples()
    return worst
