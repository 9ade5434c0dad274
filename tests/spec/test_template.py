"""A new recipe is its base until something is uncommented, and every line of it may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.spec.submission import Submission, load
from bench.spec.template import new_recipe, toml_value
from bench.spec.toml import parse_toml
from tests.spec.recipes import FIELDS, SUBMISSIONS


def written(folder: Path, text: str) -> Submission:
    """The submission that a text makes, its bases being the checkout's."""
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, SUBMISSIONS)


def template(base: str) -> tuple[str, Submission]:
    """A new recipe on `base`, and the base."""
    under = load(SUBMISSIONS / f"{base}.toml")
    return new_recipe("mine", base, under.recipe), under


@pytest.mark.parametrize("base", ["run6", "run7", "quick", "d4-bigram"])
def test_a_new_recipe_is_its_base(base: str, tmp_path: Path) -> None:
    text, under = template(base)
    made = written(tmp_path, text)
    assert made.sha256 == under.sha256
    assert made.recipe.base == base


@pytest.mark.parametrize("base", ["run6", "run7", "quick", "d4-bigram"])
def test_every_line_uncommented_says_what_the_base_does(base: str, tmp_path: Path) -> None:
    text, under = template(base)
    plain = re.sub(r"^# (?=\[[a-z.]+\]  |[a-z_0-9]+ = )", "", text, flags=re.MULTILINE)
    assert written(tmp_path, plain).sha256 == under.sha256


def test_every_field_is_there_once_with_its_range() -> None:
    text, _ = template("run6")
    table, found = "", []
    for line in text.splitlines():
        if header := re.match(r"(?:# )?\[([a-z_0-9.]+)\](?:  #|$)", line):
            table = header[1]
        elif field := re.match(r"# ([a-z_0-9]+) (?:=|is not given)", line):
            found.append(f"{table}.{field[1]}".lstrip("."))
    assert sorted(set(found) - {"track", "systems_only"}) == FIELDS
    assert len(set(found)) == len(found)
    assert "# depth = 24  # layers; >= 1, <= 128" in text
    assert '# positions = "rotary"  # none: NoPE, arXiv 2203.16634; "rotary" or "none"' in text


@pytest.mark.parametrize("value", ["plain", 'a "quote"', "back\\slash", "two\nlines", "tab\t", True, 0.25, 3])
def test_a_value_is_read_back(value: object) -> None:
    assert parse_toml(f"x = {toml_value(value)}".encode(), "inline") == {"x": value}
