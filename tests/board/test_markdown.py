"""Text from strangers stays text."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.board.markdown import BREAK, escape, table

HOSTILE = st.text(
    alphabet=st.sampled_from("|`*_[]()<>&\\!#~$@:/.wht ps\n\r\t\x0b\x85\u2028\u2029\u202e-a1"), max_size=60
)


@given(text=HOSTILE | st.text(max_size=60))
def test_no_character_keeps_a_meaning(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    unescaped = re.sub(r"\\[\W_]", "", shown)
    assert not re.search(r"[|*_`\[\]~!$\\<>]", unescaped)
    assert "](" not in shown.replace("\\]", "")
    assert not re.search(r"(?i)(https?|ftp|mailto|xmpp):|www\.|@\w", shown)


@given(text=st.text(alphabet=st.characters(exclude_categories=("C", "Z")), max_size=60))
def test_a_reader_sees_the_text(text: str) -> None:
    rendered = html.unescape(re.sub(r"\\([\W_])", r"\1", escape(text).replace(BREAK, "")))
    assert rendered == text


def cells_of(line: str) -> list[str]:
    """The cells as GitHub cuts a line of a table: at every `|` without a backslash."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


@given(cells=st.lists(st.tuples(HOSTILE, HOSTILE), max_size=4))
def test_a_table_keeps_its_columns(cells: list[tuple[str, str]]) -> None:
    rows = [[escape(a), escape(b)] for a, b in cells]
    lines = table([("recipe", "left"), ("score", "right")], rows).split("\n")
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines}) == 1
    assert all(len(cells_of(line)) == 2 for line in lines)
    assert re.fullmatch(r"\|:-+\|-+:\|" if rows else r"\|:?-+\|:?-+\|", lines[1])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a \\| b"),
        ("[x](https://evil.example)", "\\[x\\](https&#8203;://evil.example)"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("two\nlines", "two lines"),
        ("d22+warmdown 0.85", "d22+warmdown 0.85"),
        ("100 %, p < 0.01 & n = 3", "100 %, p &lt; 0.01 &amp; n = 3"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert escape(text) == shown
