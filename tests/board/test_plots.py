"""Plots: axes that say what is drawn, at places that follow from the figures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.board.plots import Change, Dated, Placed, frontier, progress, unbeaten, waterfall
from bench.board.ranking import Estimate
from bench.board.row_plots import MOST_POINTS, ledger_bar, ledger_parts, loss_lines, loss_points
from bench.drawing.words import text
from bench.records.schema import Curves
from tests.records.sample import LEDGER, sample

FIGURES = st.builds(
    Estimate,
    mean=st.floats(0.5, 1000),
    half_width=st.none() | st.floats(0, 10),
    num_seeds=st.integers(1, 9),
)
NAMES = st.text(max_size=40)


def drawn(svg: str) -> ET.Element:
    """The drawing, which must be XML and named."""
    root = ET.fromstring(svg)
    assert root[0].tag == "title"
    assert root[0].text
    return root


def numbers(root: ET.Element) -> list[float]:
    """Every coordinate of the drawing."""
    places = {"d", "cx", "cy", "x", "y", "width"}
    attributes = [value for part in root.iter() for key, value in part.items() if key in places]
    return [float(number) for value in attributes for number in re.findall(r"-?\d+\.?\d*", value)]


@given(points=st.lists(st.builds(Placed, NAMES, FIGURES, FIGURES), max_size=20))
def test_the_frontier_is_what_none_beats(points: list[Placed]) -> None:
    found = unbeaten(points)
    for one in points:
        beaten = any(
            other.seconds.mean <= one.seconds.mean and other.bpb.mean < one.bpb.mean for other in points
        )
        assert (
            (one.seconds.mean, one.bpb.mean) in {(o.seconds.mean, o.bpb.mean) for o in found}
            or beaten
            or any(
                other.seconds.mean < one.seconds.mean and other.bpb.mean <= one.bpb.mean for other in points
            )
        )
    svg = frontier(points)
    assert bool(svg) == (len(points) > 1)
    if svg:
        root = drawn(svg)
        assert len(root.findall("circle")) == len(points)
        assert all(-60 <= number <= 700 for number in numbers(root))


@given(
    means=st.lists(st.floats(1, 3), min_size=2, max_size=12, unique=True), sign=st.sampled_from([1.0, -1.0])
)
def test_progress_marks_each_new_record(means: list[float], sign: float) -> None:
    points = [
        Dated(f"r{i}", f"2026-03-{i + 1:02d}T12:00:00Z", Estimate(mean, None, 3))
        for i, mean in enumerate(means)
    ]
    root = drawn(progress(points[::-1], sign, "val_bpb"))
    records = [mean for i, mean in enumerate(means) if all(sign * mean < sign * past for past in means[:i])]
    kinds = [circle.get("class") for circle in root.findall("circle")]
    assert kinds.count("dot best") == len(records)
    assert len(kinds) == len(means)


def test_what_shows_nothing_is_left_out() -> None:
    figure = Estimate(2.0, None, 1)
    one = Dated("a", "2026-03-01T12:00:00Z", figure)
    assert progress([], 1.0, "x") == progress([one], 1.0, "x") == progress([one, one], 1.0, "x") == ""
    assert progress([one, Dated("b", "no date", figure)], 1.0, "x") == ""
    assert waterfall("a", [Change("b", figure)], 1.0, "x") == ""
    assert ledger_bar({"train": 0.0}) == ""
    once = {"losses": [5.0], "logged_steps": [1], "logged_seconds": [1.0]}
    assert loss_lines([(0, msgspec.structs.replace(sample()[0].curves, **once))]) == ""


def test_a_waterfall_goes_from_the_best_change_to_the_worst() -> None:
    changes = [
        Change(name, Estimate(delta, 0.01, 3)) for name, delta in (("a", 0.1), ("b", -0.2), ("c", 0.0))
    ]
    root = drawn(waterfall("base", changes, 1.0, "val_bpb"))
    assert [rect.get("class") for rect in root.findall("rect")] == ["good", "untold", "bad"]
    widths = [float(rect.get("width") or 0) for rect in root.findall("rect")]
    assert widths[0] == pytest.approx(2 * widths[2], rel=0.01)
    assert widths[1] == 0.0
    turned = drawn(waterfall("base", changes, -1.0, "core"))
    assert [rect.get("class") for rect in turned.findall("rect")] == ["good", "untold", "bad"]
    assert "a: +0.1000 ± 0.0100" in [title.text for title in turned.iter("title")]


def test_the_ledger_bar_is_whole_and_official_time_comes_first() -> None:
    root = drawn(ledger_bar(LEDGER))
    widths = [float(rect.get("width") or 0) for rect in root.findall("rect")]
    assert sum(widths) == pytest.approx(640, abs=0.5)
    assert [name for _, name, _ in ledger_parts(LEDGER)][:3] == ["train", "data_wait", "compile"]
    assert ledger_parts({name: 0.0 for name in LEDGER}) == []


@given(steps=st.integers(2, 500), every=st.integers(1, 9))
def test_a_loss_line_is_of_means_and_ends_at_the_last_logged_step(steps: int, every: int) -> None:
    logged = list(range(every, steps + 1, every))
    assume(len(logged) > 1)
    curves = Curves(
        losses=[float(step) for step in range(1, steps + 1)],
        logged_steps=logged,
        logged_seconds=[step / 10 for step in logged],
        bpb_steps=[],
        bpbs=[],
    )
    points = loss_points(curves)
    assert 1 <= len(points) <= MOST_POINTS
    assert points == sorted(points)
    assert all(loss <= seconds * 10 + 1e-9 for seconds, loss in points)
    first = round(points[0][0] * 10)
    assert points[0][1] == pytest.approx((1 + first) / 2)
    if len(points) > 1:
        drawn(loss_lines([(0, curves), (1, curves)]))


def test_losses_that_are_not_finite_are_not_drawn() -> None:
    curves = Curves(
        losses=[3.0, None, 1.0], logged_steps=[1, 2, 3], logged_seconds=[1.0, 2.0, 3.0], bpb_steps=[], bpbs=[]
    )
    assert loss_points(curves) == [(1.0, 3.0), (3.0, 1.0)]


@given(name=NAMES)
def test_a_name_in_a_drawing_is_text(name: str) -> None:
    figures = [Placed(name, Estimate(1.0 + i, None, 1), Estimate(2.0 - i, None, 1)) for i in range(2)]
    titles = [title.text or "" for title in drawn(frontier(figures)).iter("title")]
    assert sum(": 2.0000 bpb in 1.0 s" in title for title in titles) == 1
    assert not re.search(r"[<>]", text(name))
