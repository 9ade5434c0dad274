"""Charts are well-formed SVG whatever they are given."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bench.experiments.plots import Line, chart

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf])
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8), LABELS, st.booleans())
def test_any_points_make_a_document_inside_its_frame(
    points: list[tuple[float, float]], label: str, log_x: bool
) -> None:
    text = chart(label, label, label, [Line(label, points), Line("b", points, is_dotted=True)], log_x=log_x)
    root = ElementTree.fromstring(text)
    for circle in root.iter(f"{SVG}circle"):
        assert -8 <= float(circle.attrib["cx"]) <= 760
        assert -8 <= float(circle.attrib["cy"]) <= 440
    assert "nan" not in "".join(line for line in text.splitlines() if "<poly" in line)
    assert text == chart(
        label, label, label, [Line(label, points), Line("b", points, is_dotted=True)], log_x=log_x
    )


def test_a_stepped_line_holds_its_value_up_to_the_next_point() -> None:
    line = Line("a", [(0, 1), (1, 2), (3, 5)], is_stepped=True)
    root = ElementTree.fromstring(chart("t", "x", "y", [line]))
    (drawn,) = root.iter(f"{SVG}polyline")
    corners = [tuple(map(float, pair.split(","))) for pair in drawn.attrib["points"].split()]
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))
    assert len(set(corners)) == 5


def test_the_key_names_each_line_once_and_lies_above_the_plot() -> None:
    lines = [Line(f"a recipe of a rather long name {i}", [(0, i), (1, i)]) for i in range(6)]
    lines.append(Line("", [(0, 9), (1, 9)]))
    root = ElementTree.fromstring(chart("t", "x", "y", lines))
    texts = {node.text: float(node.attrib["y"]) for node in root.iter(f"{SVG}text") if "y" in node.attrib}
    lines_at = [
        float(pair.split(",")[1])
        for line in root.iter(f"{SVG}polyline")
        for pair in line.attrib["points"].split()
    ]
    assert max(texts[line.label] for line in lines if line.label) < min(lines_at)


def test_markup_in_a_label_stays_text() -> None:
    root = ElementTree.fromstring(chart("<script>", "x", "y", [Line("</svg>&", [(0, 1), (1, 2)])]))
    assert {"<script>", "</svg>&"} <= {node.text for node in root.iter() if node.text}
