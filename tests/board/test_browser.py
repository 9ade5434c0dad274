"""The page in a real browser: it sorts, filters and opens rows, on a phone too, and complains of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.board.build import write_board
from bench.records.store import write_once
from bench.spec.workspace import Workspace
from tests.board.browser import Browser, browser, found
from tests.records.sample import ROOT, changed, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="no chromium is installed"),
]
RANKED = "document.querySelectorAll('table.board:not(.reported) tbody:not([hidden]) b')"
NAMES = f"[...{RANKED}].map(b => b.textContent)"
HEAD = "[...document.querySelectorAll('th button')].find(b => b.textContent == '{}').click()"
FILTER = "(e => {{ e.value = '{}'; e.dispatchEvent(new Event('input')) }})(document.getElementById('{}'))"
SHOWN = "[...document.querySelectorAll('tr.more')].filter(row => row.offsetHeight > 0).length"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of four recipes: `slow` is best, `quick` fastest, `half` provisional, `evil` says markup."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "leaderboard" / "tracks", root / "leaderboard" / "tracks")
    shutil.copy(ROOT / "leaderboard" / "reported.toml", root / "leaderboard" / "reported.toml")
    space = Workspace(root=root, data=root / ".data")
    for name, bpb, train_s, count in (("slow", 2.4, 40.0, 3), ("quick", 2.5, 9.0, 3), ("half", 2.3, 20.0, 2)):
        for i in range(count):
            write_once(space.records, *sample(name, i, bpb + i / 1000, train_s=train_s + i))
    record, events = sample("evil", 0, 2.9, warnings=["<script>console.error(1)</script>"])
    hostile = "<img src=x onerror=console.error(2)>"
    write_once(
        space.records, changed(record, "machine.facts", {"cpu_model": hostile} | record.machine.facts), events
    )
    write_board(space)
    return space.board.with_name("index.html")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    program = found()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def loaded(tab: Browser, page: Path) -> Iterator[Browser]:
    """The page, freshly loaded; no test may leave a complaint."""
    tab.open(page)
    yield tab
    tab.ask("0")  # what was said before this answer has been heard
    assert tab.complaints == []


def test_a_head_sorts_up_down_and_back(loaded: Browser) -> None:
    ranked = ["slow", "quick", "half", "evil"]
    assert loaded.ask(NAMES) == ranked
    loaded.ask(HEAD.format("time (s)"))
    assert loaded.ask(NAMES) == ["quick", "evil", "half", "slow"]
    loaded.ask(HEAD.format("time (s)"))
    assert loaded.ask(NAMES) == ["slow", "half", "evil", "quick"]
    assert loaded.ask("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    loaded.ask(HEAD.format("time (s)"))
    assert loaded.ask(NAMES) == ranked
    loaded.ask(HEAD.format("recipe"))
    assert loaded.ask(NAMES) == sorted(ranked)
    loaded.ask(HEAD.format("rank"))
    assert loaded.ask(NAMES)[:2] == ["slow", "quick"]  # those without a rank come last


def test_words_and_states_filter(loaded: Browser) -> None:
    loaded.ask(FILTER.format("SLOW", "filter"))
    assert loaded.ask(NAMES) == ["slow"]
    assert loaded.ask("document.getElementById('shown').textContent").startswith("1 of ")
    loaded.ask(FILTER.format("", "filter"))
    loaded.ask(FILTER.format("provisional", "state"))
    assert loaded.ask(NAMES) == ["half", "evil"]
    loaded.ask(FILTER.format("run 6", "filter"))
    assert loaded.ask(NAMES) == []
    loaded.ask(FILTER.format("", "state"))
    assert loaded.ask("document.querySelectorAll('.reported tbody:not([hidden])').length") >= 1


def test_a_row_opens_and_closes(loaded: Browser) -> None:
    assert loaded.ask(SHOWN) == 0
    loaded.ask("document.querySelector('td button').click()")
    assert loaded.ask(SHOWN) == 1
    assert loaded.ask("document.querySelector('td button').getAttribute('aria-expanded')") == "true"
    assert "make bench SUB=submissions/slow.toml" in loaded.ask(
        "document.querySelector('.shown pre').textContent"
    )
    assert loaded.ask("document.querySelector('.shown svg').getBoundingClientRect().width") > 200
    loaded.ask(HEAD.format("time (s)"))  # what is open moves with its row
    assert loaded.ask("document.querySelector('.shown b').textContent") == "slow"
    loaded.ask("document.querySelector('.shown td').click()")
    assert loaded.ask(SHOWN) == 0


def test_markup_of_a_record_is_read_not_obeyed(loaded: Browser) -> None:
    assert (
        loaded.ask("document.querySelectorAll('img').length + document.querySelectorAll('script').length")
        == 1
    )
    assert "<script>console.error(1)</script>" in loaded.ask("document.body.textContent")


@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")]
)
def test_it_fits_light_and_dark(tab: Browser, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, 800, scheme)
    tab.ask("document.querySelectorAll('td button').forEach(button => button.click())")
    assert tab.ask("document.documentElement.scrollWidth") == width
    widest = "Math.max(...[...document.querySelectorAll('.open')].map(e => e.getBoundingClientRect().width))"
    assert 0 < tab.ask(widest) <= width
    ink, ground = (
        sum(
            map(
                int,
                tab.ask(f"getComputedStyle(document.body).{name}")
                .removeprefix("rgb(")
                .rstrip(")")
                .split(","),
            )
        )
        for name in ("color", "backgroundColor")
    )
    assert (ink < ground) == (scheme == "light")
    assert abs(ink - ground) > 450
    assert tab.picture().startswith(b"\x89PNG")
    assert tab.complaints == []


def test_without_the_script_everything_is_there(tab: Browser, page: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page)
        document = tab.call("DOM.getDocument", depth=1)["root"]["nodeId"]
        opened = tab.call("DOM.querySelector", nodeId=document, selector="tr.more")["nodeId"]
        assert tab.call("DOM.getBoxModel", nodeId=opened)["model"]["height"] > 100
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
