"""board.svg: one table as a picture, whole, small and inert."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.board.picture import MOST_ROWS, _axis, _mark, fullest, picture
from bench.board.standings import standings
from bench.spec.track import load_tracks
from tests.board.test_rows import runs
from tests.records.sample import ROOT, changed, quick_track, sample

TRACK = quick_track()
MOST_BYTES = 150_000
SVG = "{http://www.w3.org/2000/svg}"


def texts(drawn: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter(f"{SVG}text")]


def test_it_shows_each_row_of_the_fullest_table() -> None:
    records = (
        runs(2.5, 2.51, 2.49) + runs(2.3, 2.31, 2.32, recipe_name="better") + runs(2.9, recipe_name="one")
    )
    drawn = picture(standings(load_tracks(ROOT / "leaderboard" / "tracks"), records))
    shown = texts(drawn)
    assert shown[0] == TRACK.track.title
    assert [name for name in shown if name in ("quick", "better", "one")] == ["better", "quick", "one"]
    assert {"2.3100", "2.5000", "2.9000", "provisional", "verified"} <= set(shown)
    assert drawn.count("<circle") == 3
    assert len(drawn.encode()) < MOST_BYTES


def test_more_rows_than_fit_are_counted() -> None:
    records = [record for i in range(MOST_ROWS + 4) for record in runs(2.0 + i / 50, recipe_name=f"r{i}")]
    shown = texts(picture(standings([TRACK], records)))
    assert any("4 more rows on the board" in line for line in shown)


def test_a_row_far_off_is_an_arrow_and_the_others_keep_their_intervals() -> None:
    records = [
        record
        for i in range(6)
        for record in runs(*(2.0 + i / 100 + s / 500 for s in range(3)), recipe_name=f"r{i}")
    ]
    drawn = picture(standings([TRACK], records + runs(5.0, 5.1, 5.2, recipe_name="off")))
    assert texts(drawn).count("→") == 1
    widths = [
        float(end) - float(start)
        for start, end in re.findall(r'"err" d="M([0-9.]+) [0-9.]+H([0-9.]+)"', drawn)
    ]
    assert len(widths) == 6
    assert min(widths) > 10


def test_an_interval_that_goes_beyond_the_picture_ends_in_an_arrow() -> None:
    records = [
        record
        for i in range(4)
        for record in runs(*(2.0 + i / 100 + s / 500 for s in range(3)), recipe_name=f"r{i}")
    ]
    section = standings([TRACK], records)
    (row, *_) = rows = section[0].tables[0].rows
    axis = _axis([row.score for row in rows])
    inside, reach = row.score, axis.high - axis.low
    assert "→" not in _mark(row, inside, axis, 1.0)
    drawn = _mark(row, inside._replace(half_width=3 * reach), axis, 1.0)
    assert texts(f'<svg xmlns="{SVG[1:-1]}">{drawn}</svg>') == ["←", "→"]
    numbers = [float(x) for x in re.findall(r"[MH]([0-9.]+)", drawn)]
    assert all(axis.start_px <= x <= axis.end_px for x in numbers)


def test_no_record_is_said() -> None:
    assert fullest(standings([TRACK], [])) is None
    assert "No record yet" in texts(picture(standings([TRACK], [])))


@given(short=st.text(max_size=80), title=st.text(max_size=20))
@pytest.mark.filterwarnings("error")
def test_text_from_strangers_is_text(short: str, title: str) -> None:
    record = changed(sample()[0], "identity.recipe_short", f"<script>{short}</svg>")
    drawn = picture(standings([TRACK], [changed(record, "identity.recipe_title", title)]))
    root = ElementTree.fromstring(drawn)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "text", "path", "circle"}


def test_the_readme_shows_the_committed_picture() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sources = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert "leaderboard/board.svg" in sources
    path = ROOT / "leaderboard" / "board.svg"
    assert path.stat().st_size < MOST_BYTES
    ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")
    assert not re.search(r"(href|src|url\()", Path(path).read_text(encoding="utf-8"))
