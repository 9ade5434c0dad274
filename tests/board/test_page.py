"""The page: whole without a network, small, and whatever a record says stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.board.listing import listing
from bench.board.page import MOST_BYTES, page
from bench.board.reported import Figure, Group, Reported
from bench.board.standings import standings
from bench.records.schema import Record
from tests.board.test_rows import TARGET, TRACK, runs
from tests.records.sample import changed, sample

VOID = {"meta", "input", "br", "hr", "link", "img"}
MARKUP = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "</td></tr></table><h1>x",
        '"><img src=x onerror=alert(1)>',
        "' onclick='alert(1)",
        "</title></svg><svg onload=alert(1)>",
        "</style><style>*{display:none}",
        "<!--",
        "-->",
        "]]>",
        "&lt;script&gt;",
        "javascript:alert(1)",
        "\x00\u202e\u2028<b>",
        "| a | b |\n|---|",
        "[x](https://evil.example)",
        "{{7*7}}${x}`",
    ]
)
HOSTILE = (
    MARKUP
    | st.text(max_size=30)
    | st.lists(MARKUP | st.text(alphabet="<>&\"'/=`! \n-a", max_size=8), max_size=4).map("".join)
)


class Skeleton(HTMLParser):
    """Every element with the names of its attributes, comments and declarations, in order; no text."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append(f"<{tag} {' '.join(name for name, _ in attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(f"</{tag}>")

    def handle_comment(self, data: str) -> None:
        self.parts.append("<!---->")

    def handle_decl(self, decl: str) -> None:
        self.parts.append(f"<!{decl}>")

    def unknown_decl(self, data: str) -> None:
        self.parts.append("<![]>")

    def handle_pi(self, data: str) -> None:
        self.parts.append("<?>")


def skeleton(html: str) -> list[str]:
    parser = Skeleton()
    parser.feed(html)
    parser.close()
    return parser.parts


def telling(word: str) -> list[Record]:
    """Records of three recipes that say `word` wherever a record has words of its own."""
    records = []
    for number, name in enumerate(("a", "b", "c")):
        for i in range(3):
            record, _ = sample(
                f"{name}{word if number else ''}", i, 2.5 + number / 10 + i / 100, train_s=15.0 + number
            )
            record = changed(record, "created", f"2026-03-0{number + 1}T12:00:0{i}Z")
            for path in (
                *(
                    "identity.recipe_title",
                    "identity.recipe_short",
                    "identity.own_track",
                    "identity.plan_sha256",
                ),
                *(
                    "identity.git_commit",
                    "identity.image_digest",
                    "data.tokenizer_sha256",
                    "identity.git_dirty_sha256",
                ),
                *("events_sha256_tip", "scores.weights_sha256"),
            ):
                record = changed(record, path, f"x{word}")
            facts = record.machine.facts | {
                "cpu_model": f"m{word}",
                "python_version": f"p{word}",
                "versions": {"torch": f"t{word}"},
            }
            record = changed(record, "machine.facts", facts)
            record = changed(record, "features", {f"f{word}": 0.0})
            resolved = record.identity.recipe_resolved
            record = changed(record, "identity.recipe_resolved", resolved | {"base": "a" if number else None})
            records.append(msgspec.structs.replace(record, warnings=[f"w{word}"]))
    lost, _ = sample(f"z{word}", 0, None)
    return [*records, lost]


def many(num_rows: int) -> list[Record]:
    """Three records of each of so many recipes."""
    return [
        changed(changed(record, "identity.recipe", f"r{i:03}"), "scores.value", 2.5 + i / 1000 + seed / 500)
        for seed, record in enumerate(runs(2.5, 2.5, 2.5))
        for i in range(num_rows)
    ]


def published(word: str) -> Reported:
    group = Group(name="g", title=f"x{word}", says=f"x{word}")
    figure = Figure(name=f"x{word}", group="g", core=0.2, source="https://a.example/x", remark=f"x{word}")
    return Reported(group=(group,), figure=(figure,))


PLAIN = standings([TRACK], telling("y"))
SHAPE = skeleton(page(PLAIN, published("y")))


@given(word=HOSTILE)
@settings(max_examples=25, deadline=None)
def test_no_word_of_a_record_is_markup(word: str) -> None:
    sections = standings([TRACK], telling(word))
    shown = page(sections, published(word))
    assert skeleton(shown) == SHAPE
    shown.encode()
    text, plain = listing(sections, published(word)), listing(PLAIN, published("y"))
    assert skeleton(text.replace("<../", "").replace("<https://a", "")) == []
    assert text.count("\n") == plain.count("\n") == len(text.splitlines())
    pipes = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in text.splitlines()]
    assert pipes == [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in plain.splitlines()]


def test_the_benign_page_has_what_the_hostile_one_is_compared_with() -> None:
    for tag in ("<svg viewbox role>", "<circle class cx cy r>", "<rect class x y width height>", "<pre >"):
        assert tag in SHAPE, tag
    assert (
        sum(part.startswith("<svg") for part in SHAPE) == 3 * 2 + 3
    )  # bars and losses of rows; the track's plots


def test_a_page_needs_nothing_else() -> None:
    shown = page(standings([TRACK], runs(2.5, 2.4, 2.6)))
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b|\bsrc=|@import|url\(|https?://", shown)
    assert shown.count("<script") == shown.count("<style") == 1
    assert "default-src 'none'" in shown
    assert not re.search(
        r"\s(on[a-z]+|style)=", re.sub(r"<(script|style)>.*?</\1>", "", shown, flags=re.DOTALL)
    )


def test_elements_are_closed_in_turn() -> None:
    """But for cells and terms, whose ends HTML lets one leave out."""
    closes_itself = VOID | {"td", "th", "dt", "dd"}
    open_elements: list[str] = []
    for part in SHAPE:
        name = part.strip("</>").split(" ")[0]
        if part.startswith("<!") or name in closes_itself:
            continue
        if part.startswith("</"):
            assert open_elements.pop() == name
        else:
            open_elements.append(name)
    assert open_elements == []


def test_the_page_says_what_a_row_is() -> None:
    shown = page(standings([TRACK], runs(2.51, 2.47, 2.62)))
    for told in (
        "2.5333",
        "± 0.1",
        "15.5",
        "17,476",
        "0.88",
        "verified",
        "1 ✓",
        "Example CPU, 2 cores",
        "torch",
    ):
        assert told in shown, told
    assert "make bench SUB=submissions/quick.toml TRACK=cpu-quick SEED=2" in shown
    assert "git checkout aaaaaaaa" in shown
    assert "Not measured here: CORE, MFU, energy (kJ), cost ($)." in shown
    assert "Tracks without a record" not in shown
    assert "No run finished of: lost (1 run(s))" in page(standings([TRACK], runs(None, recipe_name="lost")))


def test_plots_with_nothing_to_show_are_left_out() -> None:
    def plots(records: list[Record]) -> list[str]:
        return re.findall(r"<figcaption>(.*?)</figcaption>", page(standings([TRACK], records)))

    assert plots(runs(2.5, 2.4, 2.6)) == []
    assert plots(runs(2.5, 2.4, 2.6) + runs(2.5, recipe_name="b")) == ["Bits per byte against time"]
    assert len(plots(telling("y"))) == 3


def test_times_rank_and_plot_where_the_track_says_so() -> None:
    shown = page(standings([TARGET], telling("y")))
    assert "of the time such rows show" in shown
    assert "change of official time (s) against a" in page(
        standings([TARGET], [changed(one, "scores.value", 2.4) for one in telling("y")[:-1]])
    )


def test_the_order_of_the_records_does_not_matter() -> None:
    records = telling("y")
    assert page(standings([TRACK], records[::-1]), published("y")) == page(PLAIN, published("y"))


def test_rows_that_do_not_fit_keep_their_figures() -> None:
    records = many(120)
    shown = page(standings([TRACK], records))
    assert MOST_BYTES - 6000 < len(shown.encode()) <= MOST_BYTES
    assert shown.count("<b>r") == 120
    closed = re.search(r"To stay small, (\d+) rows open in feed.json only", shown)
    assert closed is not None
    assert shown.count("class=more") == 120 - int(closed[1])


def test_figures_that_no_run_has_end_in_no_traceback() -> None:
    records = runs(2.5, 2.4, 2.6) + runs(1e200, 1e-300, 1e150, recipe_name="huge")
    records += [changed(one, "timing.official_s", 0.0) for one in runs(2.5, 2.5, 2.5, recipe_name="zero")]
    records += [
        changed(one, "curves.losses", [1e300, -1e300, *one.curves.losses[2:]])
        for one in runs(2.7, 2.7, recipe_name="odd")
    ]
    for track in (TRACK, TARGET):
        sections = standings([track], records)
        assert page(sections).count("<b>") == 4
        assert listing(sections).count("**") == 8
