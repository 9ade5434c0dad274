"""A systems-only claim on the board: shown, ranked where it holds, provisional where it does not."""

from __future__ import annotations

import msgspec

from bench.board.feed import feed
from bench.board.listing import listing
from bench.board.page import page
from bench.board.rows import rows_of
from bench.board.standings import standings
from bench.records.schema import Record
from bench.spec.recipe import Recipe
from tests.records.sample import quick_recipe, quick_track, sample
from tests.records.test_equivalence import FASTER, OTHER

TRACK = quick_track()
BASE = (2.5, 2.52, 2.47)


def claiming(gap: float, recipe: Recipe = FASTER) -> list[Record]:
    rows = (("quick", quick_recipe(), 0.0, 15.0), ("faster", recipe, gap, 12.0))
    return [
        sample(name, seed, bpb + shift, one, train_s=train_s)[0]
        for name, one, shift, train_s in rows
        for seed, bpb in enumerate(BASE)
    ]


def test_a_claim_that_holds_is_ranked_and_shown() -> None:
    records = claiming(1e-5)
    sections = standings([TRACK], records)
    faster = next(row for row in sections[0].tables[0].rows if row.recipe == "faster")
    assert faster.state == "verified"
    assert faster.claim is not None
    assert faster.claim.verdict == "equivalent"
    for text in (listing(sections), page(sections)):
        assert "systems-only against quick: equivalent" in text
    rows = msgspec.json.decode(feed(sections))["tracks"][0]["rows"]
    assert {row["recipe"]: row["claim"] and row["claim"]["verdict"] for row in rows} == {
        "quick": None,
        "faster": "equivalent",
    }


def test_a_claim_that_does_not_hold_has_no_rank() -> None:
    for records in (claiming(-0.3), claiming(0.0, OTHER)):
        states = {row.recipe: row.state for row in rows_of(TRACK, records)}
        assert states == {"quick": "verified", "faster": "provisional"}


def test_another_text_judges_no_claim() -> None:
    elsewhere = [record for record in claiming(0.0) if record.identity.recipe == "faster"] + [
        sample("quick", seed, bpb, corpus_sha256="9" * 64)[0] for seed, bpb in enumerate(BASE)
    ]
    faster = next(row for row in rows_of(TRACK, elsewhere) if row.recipe == "faster")
    assert faster.claim is not None
    assert faster.claim.verdict == "waiting"
