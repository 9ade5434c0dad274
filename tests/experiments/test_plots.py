"""Charts are well-formed SVG whatever they are given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.plots import Line, chart, tick_values

NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf])
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8), LABELS, st.booleans())
def test_any_points_make_a_document_inside_its_frame(
    points: list[tuple[float, float]], label: str, log_x: bool
) -> None:
    text = chart(label, label, label, [Line(label, points), Line("b", points, is_dotted=True)], log_x=log_x)
    root = ElementTree.fromstring(text)
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 760
        assert 0 <= float(circle.attrib["cy"]) <= 440
    assert "nan" not in "".join(line for line in text.splitlines() if "<poly" in line)
    assert text == chart(
        label, label, label, [Line(label, points), Line("b", points, is_dotted=True)], log_x=log_x
    )


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = tick_values(low, low + span)
    assert 1 <= len(ticks) <= 9
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_markup_in_a_label_stays_text() -> None:
    root = ElementTree.fromstring(chart("<script>", "x", "y", [Line("</svg>&", [(0, 1), (1, 2)])]))
    assert {"<script>", "</svg>&"} <= {node.text for node in root.iter() if node.text}
