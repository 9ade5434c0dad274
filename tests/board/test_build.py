"""The board: a pure function of the records, and the file that must equal it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board.build import board_files, check_board, read_standings, render, write_board
from bench.board.feed import feed
from bench.board.listing import COLUMNS, SAID_ONCE, listing
from bench.board.markdown import escape
from bench.board.page import page
from bench.board.standings import standings
from bench.errors import VerificationFailed
from bench.records.store import write_once
from bench.spec.track import NamedTrack, load_tracks
from bench.spec.workspace import Workspace
from tests.board.test_page import many
from tests.board.test_rows import runs
from tests.records.sample import ROOT, changed, quick_recipe, quick_track, sample

TRACK = quick_track()
FILES = ("LEADERBOARD.md", "index.html", "feed.json", "board.svg")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A checkout with the tracks and three records."""
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    made = Workspace(root=tmp_path, data=tmp_path / ".data")
    for seed_index, bpb in enumerate((2.51, 2.47, 2.62)):
        write_once(made.records, *sample(seed_index=seed_index, bpb=bpb))
    return made


def table_lines(text: str) -> list[list[str]]:
    """The cells of every line of the tables but heads and rules."""
    rows = [line for line in text.split("\n") if re.match(r"\| *(\d+(–\d+)?|–) *\|", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


@given(order=st.permutations(range(6)))
def test_the_order_of_the_records_does_not_matter(order: list[int]) -> None:
    records = runs(2.51, 2.47, 2.62) + runs(2.6, None, recipe_name="b") + runs(2.5, recipe_name="c")
    assert render([TRACK], [records[i] for i in order]) == render([TRACK], records)


@given(
    titles=st.lists(st.text(max_size=40), min_size=1, max_size=3),
    warning=st.text(max_size=40),
    machine=st.text(max_size=40),
    name=st.text(min_size=1, max_size=20),
)
@settings(max_examples=50)
def test_text_from_a_recipe_breaks_no_table(titles: list[str], warning: str, machine: str, name: str) -> None:
    records = []
    for i, title in enumerate(titles):
        record = sample(recipe_name=f"{name}{i}", warnings=[warning])[0]
        record = changed(changed(record, "identity.recipe_title", title), "identity.own_track", name)
        records.append(changed(record, "machine.facts.cpu_model", machine))
    text = render([TRACK], records)
    lines = table_lines(text)
    num_columns = len(COLUMNS) - (len(SAID_ONCE) if len(titles) > 1 else 0)
    assert [len(line) for line in lines] == [num_columns] * len(titles)
    assert len(text.splitlines()) == text.count("\n")
    assert text.count("\n## ") == 1
    plain = render([TRACK], [sample(recipe_name=f"x{i}", warnings=["w"])[0] for i in range(len(titles))])
    assert text.count("\n") == plain.count("\n")


def test_what_all_rows_share_is_said_once() -> None:
    one, other = sample()[0], sample(recipe_name="b")[0]
    text = render([TRACK], [one, other])
    assert "All rows: MFU n/a; kernels proved 1; machine Example CPU, 2 cores." in text
    text = render([TRACK], [one, changed(other, "machine.facts.cpu_model", "Other")])
    assert "All rows: MFU n/a; kernels proved 1.\n" in text
    assert "All rows" not in render([TRACK], [one])


def test_a_title_is_of_the_recipes_own_track() -> None:
    record = changed(sample(recipe_name="x")[0], "identity.recipe_title", "x: a cell of a sweep")
    assert "| **x** a cell of a sweep" in render([TRACK], [record])
    elsewhere = changed(record, "identity.own_track", "big")
    assert "| **x** at this track's scale (on big: a cell of a sweep)" in render([TRACK], [elsewhere])


def test_rows_that_are_not_told_apart_share_a_rank() -> None:
    records = runs(2.5, 2.501, 2.499, recipe_name="a") + runs(2.5, 2.502, 2.499, recipe_name="b")
    records += runs(2.6, 2.601, 2.602, recipe_name="c") + runs(1.0, recipe_name="d")
    ranks = {row[1].split("**")[1]: row[0] for row in table_lines(render([TRACK], records))}
    assert ranks == {"a": "1–2", "b": "1–2", "c": "3", "d": "–"}


def test_ranks_by_time_ask_whether_times_overlap() -> None:
    score = msgspec.structs.replace(TRACK.track.score, target=2.5, rank_by="time_to_target")
    track = NamedTrack(TRACK.name, msgspec.structs.replace(TRACK.track, score=score), TRACK.sha256)
    records = runs(2.5, 2.5, 2.5, recipe_name="fast", train_s=10.0) + runs(2.5, 2.5, 2.5, recipe_name="slow")
    assert [row[0] for row in table_lines(render([track], records))] == ["1", "2"]


def test_rows_over_other_texts_stand_apart() -> None:
    one, other = runs(2.5, 2.4, 2.6), [sample("other", i, 2.5, corpus_sha256="d" * 64)[0] for i in range(3)]
    assert len(re.findall(r"^\| +rank", render([TRACK], one), re.MULTILINE)) == 1
    text = render([TRACK], one + other)
    assert len(re.findall(r"^\| +rank", text, re.MULTILINE)) == 2
    assert text.count("not comparable") >= 2
    assert [row[0] for row in table_lines(text)] == ["1", "1"]


def test_what_a_row_says() -> None:
    [row] = table_lines(render([TRACK], runs(2.5, None)))
    assert row == [
        "–",
        "**quick** Two minutes on a laptop (at this track's scale; its own is gpt2-8xh100)"
        if quick_recipe().track != TRACK.name
        else "**quick** Two minutes on a laptop",
        "2.5000",
        "15.5",
        "1 of 3, 1 diverged",
        "provisional",
        "n/a",
        "17,476",
        "n/a",
        "0.88",
        "24.5",
        "1",
        "Example CPU, 2 cores",
    ]


def test_a_lever_that_did_nothing_in_every_run_is_named_inert() -> None:
    def row(*features: dict[str, float]) -> str:
        records = [
            msgspec.structs.replace(record, features=one)
            for record, one in zip(runs(2.5, 2.6), features, strict=True)
        ]
        [cells] = table_lines(render([TRACK], records))
        return cells[1]

    assert row({"qk_clip": 0.0, "smear": 0.1}, {"qk_clip": 0.0, "smear": 0.0}).endswith("(inert: qk\\_clip)")
    assert "inert" not in row({"qk_clip": 0.0}, {"qk_clip": 1e-9})
    assert "inert" not in row({}, {})


def test_two_methods_of_one_name_are_told_apart() -> None:
    recipe = quick_recipe()
    deeper = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, depth=5))
    names = [
        row[1].split(" Two")[0]
        for row in table_lines(render([TRACK], [sample()[0], sample(recipe=deeper)[0]]))
    ]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"\*\*quick\*\* `[0-9a-f]{8}`", name) for name in names)


def test_tracks_without_a_record_come_last_the_largest_first() -> None:
    tracks = load_tracks(ROOT / "leaderboard" / "tracks")
    text, silent = render(tracks, runs(2.5)).split("## Tracks without a record yet")
    assert re.findall(r"\n`([a-z0-9-]+)` · machine", text) == [TRACK.name]
    ordered = [one.name for one in sorted(tracks, key=lambda one: (-one.track.size, one.name))]
    ordered.remove(TRACK.name)
    assert re.findall(r"\n- \*\*.*\*\* \(`([a-z0-9-]+)`\)", silent) == ordered
    text += silent
    assert all(escape(track.track.title) in text for track in tracks)


def test_divergence_is_counted_even_where_nothing_else_is() -> None:
    text = render([TRACK], runs(None, None))
    assert "No run finished of: quick (2 run(s))." in text
    assert "without a record" not in text


def test_warnings_stand_below_the_table() -> None:
    text = render([TRACK], [sample(warnings=["the code differs from its commit"])[0]])
    assert text.endswith("- quick: the code differs from its commit\n")


def test_the_board_written_passes_its_check(space: Workspace) -> None:
    written = write_board(space)
    assert [path.name for path in written] == list(FILES)
    assert check_board(space) == written
    assert {path: path.read_bytes() for path in written} == board_files(space)
    assert "2.5333 ± 0.1" in listing(read_standings(space))
    assert "2.5333 <i>± 0.1" in written[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_the_board_is_checked(space: Workspace, name: str) -> None:
    write_board(space)
    path = space.board.parent / name
    path.write_bytes(path.read_bytes().replace(b"2.5333", b"2.4333"))
    with pytest.raises(VerificationFailed, match=rf"{name}:\d+ is not what"):
        check_board(space)


@given(data=st.data())
@settings(max_examples=40)
def test_any_edit_of_the_board_fails_its_check(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "leaderboard" / "tracks", root / "leaderboard" / "tracks")
    space = Workspace(root=root, data=root)
    content = write_board(space)[0].read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 20, len(content))))
    edited = (
        content[:start] + data.draw(st.binary(max_size=5) | st.just(b"\r") | st.just(b"\n")) + content[end:]
    )
    space.board.write_bytes(edited)
    if edited == content:
        check_board(space)
        return
    with pytest.raises(VerificationFailed) as caught:
        check_board(space)
    assert caught.value.exit_code == 8
    assert len(caught.value.message.splitlines()) == 1
    assert "make leaderboard" in caught.value.hint


@pytest.mark.parametrize(
    "edit", [lambda text: text + b"\n", lambda text: text.replace(b"\n", b"\r\n"), lambda _: b""]
)
def test_edits_that_a_reader_does_not_see_fail_too(space: Workspace, edit: object) -> None:
    assert callable(edit)
    write_board(space)
    space.board.write_bytes(edit(space.board.read_bytes()))
    with pytest.raises(VerificationFailed):
        check_board(space)


def test_a_missing_board_fails_its_check(space: Workspace) -> None:
    with pytest.raises(VerificationFailed):
        check_board(space)


def test_a_record_that_lies_stops_the_board(space: Workspace) -> None:
    write_board(space)
    before = space.board.read_bytes()
    record, events = sample(recipe_name="liar")
    write_once(space.records, changed(record, "timing.mfu", 2.0), events)
    with pytest.raises(VerificationFailed, match="MFU"):
        write_board(space)
    assert space.board.read_bytes() == before


def test_building_the_board_loads_no_torch() -> None:
    program = (
        "import sys; import bench.board.build, bench.board.export, bench.board.summary; "
        "sys.exit(bool({'torch', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_thousand_records_make_a_small_board_at_once() -> None:
    """The processor's time of this thread: other tests may be running beside it."""
    records = many(334)
    start_s = time.thread_time()
    sections = standings([TRACK], records)
    text, shown, fed = listing(sections), page(sections), feed(sections)
    took_s = time.thread_time() - start_s
    assert took_s < 2.0  # 0.8 s on one core of a Xeon
    assert len(shown.encode()) < 300_000
    assert all(text.count("**r") == each for each in (334, shown.count("<b>r"), fed.count(b'"recipe": "r')))
