"""What others published: read strictly, shown apart, and nothing in it is markup."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board.build import board_files, render
from bench.board.markdown import escape
from bench.board.reported import COLUMNS, Figure, Group, Reported, load_reported, reported_section
from bench.errors import RecipeError
from bench.spec.workspace import Workspace
from tests.board.test_build import TRACK
from tests.board.test_rows import runs
from tests.records.sample import ROOT

SHIPPED = ROOT / "leaderboard" / "reported.toml"
GROUP = '[[group]]\nname = "a"\ntitle = "A"\nsays = "one text"\n'
FIGURE = '[[figure]]\nname = "f"\ngroup = "a"\nval_bpb = 0.7\nsource = "https://a.example/x"\n'
TITLE = "## Reported, not run here"


def read(folder: Path, toml: str) -> Reported:
    path = folder / "reported.toml"
    path.write_text(toml, encoding="utf-8")
    return load_reported(path)


def rows(section: str) -> list[list[str]]:
    """The cells of every row below the heads."""
    lines = [
        line for line in section.split("\n") if line.startswith("|") and not re.match(r"\|[ :-]*-", line)
    ]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] != COLUMNS[0][0]]


def test_the_shipped_figures_are_read_and_their_recipes_exist() -> None:
    reported = load_reported(SHIPPED)
    names = {figure.submission for figure in reported.figure} - {None}
    assert {"run1", "run6", "run7", "v210", "bigram-muonplus", "alpha-stack", "d16-bigram"} <= names
    assert all((ROOT / "submissions" / f"{name}.toml").is_file() for name in names)
    assert len(rows(reported_section(reported))) == len(reported.figure)


def test_other_texts_and_other_cores_are_other_tables() -> None:
    group = {figure.name: figure.group for figure in load_reported(SHIPPED).figure}
    assert group["Run 3"] != group["Run 4"] == group["Run 6"]
    assert group["v213, Run 7 candidate"] == group["v210, 6,000 steps, warmdown 0.85"] != group["Run 6"]
    assert group["alpha stack"] == group["pull 733 as it ended, again"] != group["pull 733 as it ended"]


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (GROUP + FIGURE + "val_pbb = 1.0", "figure 1: val_pbb: no such field; did you mean 'val_bpb'?"),
        (GROUP + FIGURE + "core = 'high'", "figure 1: core = 'high': expected float | null, got str"),
        (GROUP + FIGURE + "core = 25.8", "figure 1: core = 25.8: expected float <= 1.0"),
        (GROUP + FIGURE + "time_minutes = -1.0", "figure 1: time_minutes = -1.0: expected float > 0.0"),
        (GROUP + FIGURE + "time_minutes = nan", "figure 1: time_minutes = nan: expected float > 0.0"),
        (GROUP + FIGURE + "num_runs = 0", "figure 1: num_runs = 0: expected int >= 1"),
        (GROUP + FIGURE + "submission = '../x'", "figure 1: submission = '../x': expected str matching"),
        (GROUP + FIGURE.replace("https:", "javascript:"), "figure 1: source = 'javascript://a.example/x'"),
        (GROUP + FIGURE.replace("/x", "/x)"), "figure 1: source = 'https://a.example/x)'"),
        (GROUP + FIGURE.replace("/x", "/x>"), "figure 1: source = 'https://a.example/x>'"),
        (GROUP + '[[figure]]\nname = "f"\ngroup = "a"\ncore = 0.1', "figure 1: source: missing"),
        (GROUP + FIGURE.replace("val_bpb = 0.7\n", ""), "figure 'f': none of time_minutes, val_bpb and core"),
        (GROUP + FIGURE.replace('"a"', '"b"'), "figure 'f': no group 'b'; there are a"),
        (GROUP + FIGURE + FIGURE, "figure 'f': given twice"),
        (GROUP + GROUP + FIGURE, "group 'a': given twice"),
        (GROUP, "group 'a': no figure is in it"),
        ("figure = 3", "figure: must be tables, [[figure]]"),
        ("figures = []", "figures: no such field; did you mean 'figure'?"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, toml)
    assert any(problem.startswith(told) for problem in caught.value.problems)
    assert "reported.py" in caught.value.hint


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reported\.toml: 3 problems") as caught:
        read(tmp_path, GROUP + "colour = 'red'\n" + FIGURE + "core = 2.0\nyear = 2026")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["group 1", "figure 1", "figure 1"]


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not TOML"):
        read(tmp_path, "[[figure")


WORDS = st.text(max_size=60)


@given(name=WORDS, title=WORDS, says=WORDS, remark=WORDS)
@settings(max_examples=80)
def test_text_is_text(name: str, title: str, says: str, remark: str) -> None:
    """Whatever is written, the tables keep their cells, the page its lines, and words stay words."""
    group = Group(name="a", title=title, says=says)
    figure = Figure(name=name, group="a", core=0.2, source="seeds/003", remark=remark)
    section = reported_section(Reported(group=(group,), figure=(figure,)))
    plain = reported_section(
        Reported(
            group=(Group(name="a", title="t", says="s"),),
            figure=(Figure(name="n", group="a", core=0.2, source="seeds/003", remark="r"),),
        )
    )
    assert section.count("\n") == plain.count("\n") == len(section.splitlines())
    assert section.count("\n## ") == plain.count("\n## ")
    cells = re.split(r"(?<!\\)\|", section.split("\n")[-2])[1:-1]
    assert len(cells) == len(COLUMNS)
    assert (cells[0].strip(), cells[-1].strip()) == (escape(name), escape(remark))
    assert escape(says) in section


def test_a_source_is_the_only_link(tmp_path: Path) -> None:
    reported = read(
        tmp_path, GROUP + FIGURE + "submission = 'run7'\nremark = '[x](https://evil.example) <b>'"
    )
    [row] = rows(reported_section(reported))
    assert row[1] == "[run7](<../submissions/run7.toml>)"
    assert row[6] == "[a.example/x](<https://a.example/x>)"
    assert row[7] == "\\[x\\](https&#8203;://evil.example) &lt;b&gt;"


def test_figures_keep_their_digits_and_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    toml = GROUP + FIGURE.replace("0.7\n", "0.74645\ntime_minutes = 165.37\n")
    assert rows(reported_section(read(tmp_path, toml)))[0][2:6] == ["165.4", "0.74645", "–", "–"]
    toml = GROUP + FIGURE + "core = -0.001\nnum_runs = 5"
    assert rows(reported_section(read(tmp_path, toml)))[0][2:6] == ["–", "0.7000", "-0.0010", "5"]


@given(order=st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_the_figures_does_not_matter(order: random.Random) -> None:
    reported = load_reported(SHIPPED)
    figures = list(reported.figure)
    order.shuffle(figures)
    assert reported_section(Reported(group=reported.group, figure=tuple(figures))) == reported_section(
        reported
    )


def test_on_the_board_it_is_last_and_without_a_rank() -> None:
    reported = load_reported(SHIPPED)
    text, without = render([TRACK], runs(2.5), reported), render([TRACK], runs(2.5))
    assert text.startswith(without)
    assert text[len(without) :].lstrip("\n").startswith(TITLE)
    assert text.count("\n## ") == without.count("\n## ") + 1
    assert "rank " not in text[len(without) :].split("ranks none of it")[1]
    assert text == render([TRACK], runs(2.5), load_reported(SHIPPED))
    assert text.endswith("|\n")


def test_a_checkout_without_the_file_has_no_such_section(tmp_path: Path) -> None:
    space = Workspace(root=tmp_path, data=tmp_path / ".data")
    assert not any(TITLE.strip("# ").encode() in data for data in board_files(space).values())
    space.reported.parent.mkdir()
    space.reported.write_text(GROUP + FIGURE)
    assert TITLE.encode() in board_files(space)[space.board]
    space.reported.write_text("figure = 3")
    with pytest.raises(RecipeError):
        board_files(space)
