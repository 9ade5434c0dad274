"""Axes: ticks that are round and read as they stand, values that lie within."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.drawing.axes import Axis, dates, spanning, ticks


@given(ends=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)))
def test_ticks_are_round_evenly_spaced_and_read_as_they_stand(ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    assume(high - low > 1e-6 * max(abs(low), abs(high), 1e-3))
    marks = ticks(Axis(low, high, 0.0, 100.0))
    step = marks[1].value - marks[0].value
    assert 2 <= len(marks) <= 7
    assert all(low - 1e-6 * step <= mark.value <= high + 1e-6 * step for mark in marks)
    for mark in marks:
        shown = float(mark.label.replace(",", "").replace("−", "-"))
        assert shown == pytest.approx(mark.value, abs=1e-6 * step)
    assert f"{step:.6e}"[0] in "125"


@given(start=st.integers(0, 4_000_000_000), span_s=st.integers(600, 400_000_000))
def test_dates_stand_where_they_say(start: int, span_s: int) -> None:
    marks = dates(Axis(start, start + span_s, 0.0, 100.0))
    assert 1 <= len(marks) <= 7
    for mark in marks:
        assert start <= mark.value <= start + span_s
        moment = datetime.fromtimestamp(mark.value, UTC)
        assert moment.strftime("%Y-%m-%d") == mark.label or moment.strftime("%b %d %H:%M") == mark.label


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_an_axis_holds_its_values(values: list[float]) -> None:
    axis = spanning(values, 10.0, 200.0)
    assert axis.low < axis.high
    assert all(10.0 <= axis.at(value) <= 200.0 for value in values)


@given(exponents=st.tuples(st.floats(-9, 12), st.floats(0.7, 9)))
def test_ticks_of_a_logarithmic_axis_are_few_round_and_inside(exponents: tuple[float, float]) -> None:
    low, decades = exponents
    axis = Axis(10.0**low, 10.0 ** (low + decades), 0.0, 100.0, is_log=True)
    marks = ticks(axis)
    assert 1 <= len(marks) <= 9
    for mark in marks:
        assert axis.low <= mark.value <= axis.high
        assert f"{mark.value:.6e}"[0] in "1235"
        assert float(mark.label.replace(",", "")) == pytest.approx(mark.value)


@given(values=st.lists(st.floats(1e-9, 1e12), min_size=1))
def test_a_logarithmic_axis_keeps_ratios(values: list[float]) -> None:
    axis = spanning(values, 10.0, 200.0, is_log=True)
    assert all(10.0 <= axis.at(value) <= 200.0 for value in values)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.at(middle) == pytest.approx(105.0)
