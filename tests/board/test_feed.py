"""The feed: the same rows as the page, for programs."""

from __future__ import annotations

import json

import pytest

from bench.board.feed import feed
from bench.board.standings import standings
from bench.records.replayed import record_sha256
from tests.board.test_rows import TARGET, TRACK, runs


def test_it_holds_every_row_with_its_runs() -> None:
    records = runs(2.5, 2.4, 2.6) + runs(2.7, recipe_name="b") + runs(None, recipe_name="lost")
    value = json.loads(feed(standings([TRACK], records)))
    [track] = value["tracks"]
    assert (value["schema"], track["track"], track["num_seeds"], track["lost"]) == (
        1,
        "cpu-quick",
        3,
        {"lost": 1},
    )
    assert (track["target"], track["calibration"]) == (None, None)
    first, second = track["rows"]
    assert (first["recipe"], first["rank_best"], first["rank_worst"]) == ("quick", 1, 1)
    assert (second["recipe"], second["rank_best"], second["state"]) == ("b", None, "provisional")
    assert first["score"]["mean"] == pytest.approx(2.5)
    assert (first["mfu"], first["joules"], second["score"]["half_width"]) == (None, None, None)
    assert [run["record_sha256"] for run in first["runs"]] == [record_sha256(one) for one in records[:3]]
    assert [run["score"] for run in first["runs"]] == [2.5, 2.4, 2.6]
    assert sum(first["runs"][0]["ledger"].values()) == pytest.approx(30.0)


def test_what_is_not_measured_is_null_and_a_target_is_told() -> None:
    value = json.loads(feed(standings([TARGET], runs(2.4))))
    assert value["tracks"][0]["target"] == 2.5
    assert value["tracks"][0]["rows"][0]["mde"] is None


def test_the_order_of_the_records_does_not_matter() -> None:
    records = runs(2.5, 2.4, 2.6) + runs(2.7, recipe_name="b")
    assert feed(standings([TRACK], records)) == feed(standings([TRACK], records[::-1]))
