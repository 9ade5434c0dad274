"""The error bound: exact is 0, as good as eager passes, much worse or another shape does not."""

from __future__ import annotations

import math

import pytest
import torch

from bench.proving.bounds import error_ratio, largest


def test_what_equals_the_oracle_has_no_error() -> None:
    x = torch.randn(5, dtype=torch.float64)
    assert error_ratio(x, x, x) == 0.0
    empty = torch.empty(0)
    assert largest(empty) == error_ratio(empty, empty, empty) == 0.0


def test_the_bound_is_what_it_says() -> None:
    """Allowed: 2 x 0.01 + 1 x epsilon x 3; the error is 0.05."""
    oracle = torch.tensor([1.0, -3.0], dtype=torch.float64)
    eager, actual = (oracle + 0.01).float(), (oracle + 0.05).float()
    allowed = 2 * 0.01 + torch.finfo(torch.float32).eps * 3
    assert math.isclose(error_ratio(actual, eager, oracle), 0.05 / allowed, rel_tol=1e-4)
    assert error_ratio(eager, eager, oracle) <= 0.5


def test_a_broken_eager_excuses_no_nan() -> None:
    oracle, nan = torch.ones(2, dtype=torch.float64), torch.full((2,), float("nan"))
    assert not error_ratio(nan, torch.ones(2), oracle) <= 1.0


def test_an_error_where_nothing_is_allowed_is_infinite() -> None:
    zero = torch.zeros(2)
    assert error_ratio(zero + 1e-30, zero, zero.double()) == math.inf


def test_another_shape_or_dtype_is_no_answer() -> None:
    x = torch.ones(2)
    with pytest.raises(AssertionError, match="shape"):
        error_ratio(torch.ones(3), torch.ones(3), x.double())
    with pytest.raises(AssertionError, match="dtype"):
        error_ratio(x.double(), x, x.double())
