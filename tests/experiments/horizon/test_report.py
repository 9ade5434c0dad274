"""The text says what was measured and what the paper has; the charts are whole."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from bench.experiments.horizon.calibration import infer
from bench.experiments.horizon.report import (
    inference_text,
    statistics_chart,
    statistics_text,
    tokens_chart,
)
from tests.experiments.horizon.test_calibration import PARAMS, of_value, runs
from tests.experiments.horizon.test_measure import measured

TARGET = 0.5 + 40.0 * 9e6**-0.3


def test_the_text_has_the_fits_the_floor_and_the_papers_values() -> None:
    text = statistics_text(measured())
    for part in ("beta = ", "gamma", "R2", "floor of shuffled tokens", "paper, WikiText: beta 0.94 +- 0.16"):
        assert part in text
    assert "beta is outside the paper's 0.94 +- 0.16" in text


def test_without_fits_the_text_says_so() -> None:
    found = measured(num=20_000)
    decay = msgspec.structs.replace(found.correlations, law=None)
    bare = msgspec.structs.replace(found, correlations=decay, exponent=None)
    text = statistics_text(bare)
    assert "beta: fewer than 3 lags can be fitted" in text
    assert "no exponent" in text
    ElementTree.fromstring(statistics_chart(bare))


def test_the_charts_show_points_fits_and_the_target() -> None:
    root = ElementTree.fromstring(statistics_chart(measured()))
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"top singular value", "floor of shuffled tokens", "entropy, from counts"} <= words
    text = tokens_chart(infer(of_value(0.3), runs(), TARGET, PARAMS), "folder:x", "val_bpb")
    assert text is not None
    assert "9e+06 tokens, 9 a parameter" in text
    assert (
        len(list(ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}circle"))) == 4 + 2
    )  # in the key


def test_no_law_has_no_chart() -> None:
    assert tokens_chart(infer(of_value(0.3), [], TARGET, PARAMS), "folder:x", "val_bpb") is None


def test_an_inference_in_words() -> None:
    chosen = inference_text(infer(of_value(0.3, (0.28, 0.32)), runs(), TARGET, PARAMS))
    assert "chosen: 9.00 tokens a parameter, then the neighbour" in chosen
    assert "over alpha_D's interval" in chosen
    fallen = inference_text(infer(of_value(0.1), runs(0.1), 1.0, PARAMS))
    assert "fallback, 10.5 a parameter" in fallen
