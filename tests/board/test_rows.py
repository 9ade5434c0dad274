"""Rows: what records of one recipe come to, whatever their order and however often a seed was run."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.board.ranking import estimate
from bench.board.rows import FIRST_NUMBER, only_diverged, rows_of
from bench.records.schema import Record
from bench.spec.track import NamedTrack
from tests.records.sample import quick_recipe, quick_track, sample

TRACK = quick_track()
TARGET = NamedTrack(
    TRACK.name,
    msgspec.structs.replace(
        TRACK.track,
        score=msgspec.structs.replace(TRACK.track.score, target=2.5, rank_by="time_to_target"),
    ),
    TRACK.sha256,
)


def runs(*bpbs: float | None, recipe_name: str = "quick", train_s: float = 15.0) -> list[Record]:
    """One record a score, on the seeds in turn."""
    return [sample(recipe_name, i, bpb, train_s=train_s)[0] for i, bpb in enumerate(bpbs)]


def test_one_seed_has_no_interval() -> None:
    assert estimate([2.0]).half_width is None


def test_a_row_needs_every_seed_of_the_track() -> None:
    assert [row.complete for row in rows_of(TRACK, runs(2.5, 2.4))] == [False]
    assert [row.complete for row in rows_of(TRACK, runs(2.5, 2.4, 2.6))] == [True]
    assert [row.complete for row in rows_of(TRACK, runs(2.5, None, 2.6))] == [False]
    assert [row.num_diverged for row in rows_of(TRACK, runs(2.5, None, 2.6))] == [1]


def test_a_row_of_divergence_only_is_counted() -> None:
    records = runs(None, None) + runs(2.5, recipe_name="other")
    assert [row.recipe for row in rows_of(TRACK, records)] == ["other"]
    assert only_diverged(TRACK, records) == {"quick": 2}


def test_complete_rows_come_first_and_better_ones_before_worse() -> None:
    records = (
        runs(2.5, 2.5, 2.5, recipe_name="b")
        + runs(1.0, recipe_name="a")
        + runs(2.4, 2.4, 2.4, recipe_name="c")
    )
    assert [row.recipe for row in rows_of(TRACK, records)] == ["c", "b", "a"]


def test_every_seed_must_reach_the_target() -> None:
    assert [row.complete for row in rows_of(TARGET, runs(2.5, 2.4, 2.3))] == [True]
    assert [row.complete for row in rows_of(TARGET, runs(2.51, 2.0, 2.0))] == [False]


def test_time_ranks_where_the_track_says_so() -> None:
    fast, slow = (
        runs(2.5, 2.5, 2.5, recipe_name="fast", train_s=10.0),
        runs(2.0, 2.0, 2.0, recipe_name="slow"),
    )
    assert [row.recipe for row in rows_of(TARGET, slow + fast)] == ["fast", "slow"]
    assert [row.recipe for row in rows_of(TRACK, slow + fast)] == ["slow", "fast"]


def test_repeating_a_seed_changes_no_figure() -> None:
    first = sample(bpb=2.5)[0]
    lucky = sample(bpb=1.5, created="2026-03-02T00:00:00Z")[0]
    [row] = rows_of(TRACK, [lucky, first])
    assert row.score == estimate([2.5])
    assert row.warnings == ["1 run(s) repeated a seed; the first of each seed counts"]
    early_divergence = sample(bpb=None, created="2026-02-01T00:00:00Z")[0]
    assert rows_of(TRACK, [early_divergence, first]) == []


def test_texts_and_methods_are_never_mixed() -> None:
    recipe = quick_recipe()
    deeper = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, depth=5))
    records = [sample()[0], sample(corpus_sha256="d" * 64)[0], sample(recipe=deeper)[0]]
    assert len(rows_of(TRACK, records)) == 3


@given(order=st.permutations(range(7)))
def test_the_order_of_the_records_does_not_matter(order: list[int]) -> None:
    records = runs(2.51, 2.47, 2.62) + runs(2.6, None, recipe_name="b") + runs(2.5, 2.47, recipe_name="c")
    assert rows_of(TRACK, [records[i] for i in order]) == rows_of(TRACK, records)


def test_unlike_machines_of_a_row_are_all_named() -> None:
    first, second = runs(2.5, 2.4)
    facts = {"device_kind": "cuda", "device_count": 8, "device_name": "NVIDIA H100"}
    second = msgspec.structs.replace(second, machine=msgspec.structs.replace(second.machine, facts=facts))
    [row] = rows_of(TRACK, [second, first])
    assert row.machine == "8x NVIDIA H100 / Example CPU, 2 cores"


def test_time_is_the_geometric_mean() -> None:
    records = [sample(seed_index=i, train_s=s)[0] for i, s in enumerate((9.5, 19.5, 39.5))]
    [row] = rows_of(TRACK, records)
    assert row.official_s.mean == pytest.approx(20.0)
    assert row.official_s.half_width is None  # not run in turn with other rows
    score = msgspec.structs.replace(TRACK.track.score, rank_by="time_to_target")
    [row] = rows_of(
        msgspec.structs.replace(TRACK, track=msgspec.structs.replace(TRACK.track, score=score)), records
    )
    assert row.official_s.mean == pytest.approx(20.0)
    assert row.official_s.half_width == pytest.approx(20 * math.expm1(4.302653 * math.log(2) / math.sqrt(3)))


def test_remarks_that_differ_in_a_number_are_one() -> None:
    remarks = ["text repeated: 1.60 epochs", "text repeated: 12.5 epochs", "text repeated: 3 epochs"]
    records = [
        sample(seed_index=i, warnings=[remark, "bfloat16 products in float32", f"p{i} no number"])[0]
        for i, remark in enumerate(remarks)
    ]
    [row] = rows_of(TRACK, records)
    assert row.warnings == [
        "bfloat16 products in float32",
        *(f"p{i} no number" for i in range(3)),
        "text repeated: 1.60 to 12.5 epochs (3 runs)",
    ]


@given(st.lists(st.lists(st.text(max_size=12), max_size=3), min_size=1, max_size=4))
def test_no_remark_is_lost(warnings: list[list[str]]) -> None:
    records = [sample(seed_index=i, warnings=remarks)[0] for i, remarks in enumerate(warnings)]
    [row] = rows_of(TRACK, records)
    told = " ".join(row.warnings)
    for remark in {remark for remarks in warnings for remark in remarks}:
        assert remark in told or FIRST_NUMBER.search(remark)


def test_what_a_seed_lacks_the_row_lacks() -> None:
    first, second = runs(2.5, 2.4)
    energy = msgspec.structs.replace(second.energy, joules=10.0, dollars=0.5)
    second = msgspec.structs.replace(second, energy=energy)
    [row] = rows_of(TRACK, [first, second])
    assert (row.joules, row.dollars, row.core, row.mfu) == (None, None, None, None)
    [row] = rows_of(TRACK, [second])
    assert (row.joules, row.dollars) == (10.0, 0.5)
    assert row.bpb is not None
