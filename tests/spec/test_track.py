"""Tracks: what is fixed, how a recipe comes to its scale, and the seeds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import RecipeError
from bench.spec.recipe import Horizon, Recipe
from bench.spec.submission import flatten, load
from bench.spec.track import (
    horizon_kind,
    load_track,
    load_tracks,
    on_track,
    parse_track,
    scale_fields,
    seed_value,
    seed_values,
)
from tests.spec.recipes import SHIPPED, SUBMISSIONS, TRACKS, VALUES

NAMES = sorted(path.stem for path in TRACKS.glob("*.toml"))
CONTENT = (TRACKS / "cpu-quick.toml").read_text(encoding="utf-8")


def problems(toml: str) -> tuple[str, ...]:
    """What is said of a track that must be refused."""
    with pytest.raises(RecipeError) as caught:
        parse_track(toml.encode(), "track")
    assert all(problem.isprintable() for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("name", NAMES)
def test_shipped_tracks_load(name: str) -> None:
    named = load_track(name, TRACKS)
    assert named.sha256 == hashlib.sha256((TRACKS / f"{name}.toml").read_bytes()).hexdigest()
    assert named.track.says
    assert named.track.says_not


def test_tracks_come_smallest_first() -> None:
    tracks = load_tracks(TRACKS)
    assert {named.name for named in tracks} == set(NAMES)
    assert [named.track.size for named in tracks] == sorted(named.track.size for named in tracks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("submission", SHIPPED)
def test_on_a_track_its_fields_are_the_tracks_and_the_others_the_recipes(name: str, submission: str) -> None:
    track, own = load_track(name, TRACKS).track, load(SUBMISSIONS / f"{submission}.toml").recipe
    scaled = on_track(own, track, name)
    before, after, fixed = (
        flatten(table) for table in (msgspec.to_builtins(own), msgspec.to_builtins(scaled), track.scale)
    )
    changed = {field for field in after if after[field] != before[field]}
    assert {field: after[field] for field in fixed} == fixed
    assert {field for field in changed if not field.startswith("horizon.")} <= set(fixed)
    if "horizon" not in track.scale:
        assert scaled.horizon == own.horizon
    assert sorted(fixed) == scale_fields(track)
    assert on_track(scaled, track, name) == scaled


def test_a_track_that_scales_nothing_changes_nothing() -> None:
    track = msgspec.structs.replace(load_track("cpu-quick", TRACKS).track, scale={})
    assert on_track(Recipe(), track, "x") == Recipe()
    assert scale_fields(track) == []


def test_the_tracks_horizon_replaces_the_recipes() -> None:
    track = load_track("h200-5min", TRACKS).track
    assert on_track(Recipe(horizon=Horizon(iterations=3)), track, "x").horizon == Horizon(seconds=300.0)
    assert horizon_kind(Horizon(seconds=300.0)) == "seconds"


def test_a_recipe_that_contradicts_the_tracks_scale_is_refused() -> None:
    named = load_track("cpu-quick", TRACKS)
    narrow = msgspec.structs.replace(Recipe(), model=msgspec.structs.replace(Recipe().model, kv_group=3))
    with pytest.raises(RecipeError, match="run9 on cpu-quick") as caught:
        on_track(narrow, named.track, "run9 on cpu-quick")
    assert "model.kv_group = 3" in caught.value.problems[0]


def test_every_fault_of_a_track_is_told_at_once() -> None:
    broken = (
        CONTENT.replace("size = 1", "size = 0")
        .replace('better = "lower"', 'beter = "lower"')
        .replace("count = 3", "count = true")
        .replace("compile_seconds = 300.0", "compile_seconds = inf")
        .replace("depth = 4", "depht = 4")
        .replace("iterations = 64", "iterations = -1")
    )
    places = [problem.split(" ")[0].rstrip(":") for problem in problems(broken)]
    assert sorted(places) == sorted(
        [
            "size",
            "score.beter",
            "seeds.count",
            "limits.compile_seconds",
            "scale.model.depht",
            "scale.horizon.iterations",
        ]
    )


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            'machine_class = "cpu"',
            'machine_class = "1xH100"',
            "hardware.device_kind = cpu: the class is 1xH100",
        ),
        ('machine_class = "cpu"', 'machine_class = "mps"', "hardware.device_kind = cpu: the class is mps"),
        (
            'machine_class = "cpu"\ndevice_kind = "cpu"',
            'machine_class = "1xH100"\ndevice_kind = "cuda"\ndevice_count = 2',
            "hardware.device_count = 2: the class is 1xH100",
        ),
        ('rank_by = "metric"', 'rank_by = "time_to_target"', "score.target: missing"),
        (
            'metric_id = "bpb-documents-v1"',
            'metric_id = "bpb-bestfit-v1"',
            "score.metric_id = bpb-bestfit-v1",
        ),
        ("[scale.model]", '[scale]\ntitle = "mine"\n[scale.model]', "scale.title: a track scales tables"),
        ("[scale.model]", '[scale]\nbase = "run6"\n[scale.model]', "scale.base: a track scales tables"),
        ("[scale.model]", "[scale]\nmodle = 3\n[scale.model]", "scale.modle: no such field"),
        ("iterations = 64", "iterations = 64\ntokens = 5", "horizon: exactly one"),
        ('nonce = "cpu-quick-2026"', 'nonce = ""', "seeds.nonce = ''"),
        ('nonce = "cpu-quick-2026"', 'nonce = "a\\n"', "seeds.nonce = 'a\\n'"),
        ('title = "CPU', 'title = "\\u001b[2JCPU', "title = "),
    ],
)
def test_contradictions_of_a_track(before: str, after: str, told: str) -> None:
    assert CONTENT.count(before) == 1
    assert any(problem.startswith(told) for problem in problems(CONTENT.replace(before, after)))


@given(
    line=st.sampled_from([i for i, line in enumerate(CONTENT.splitlines()) if " = " in line]), value=VALUES
)
def test_no_value_of_a_track_is_anything_but_a_recipe_error(line: int, value: str) -> None:
    lines = CONTENT.splitlines()
    lines[line] = f"{lines[line].split(' = ')[0]} = {value}"
    told: tuple[str, ...] = ("taken",)
    try:
        parse_track("\n".join(lines).encode(), "track")
    except RecipeError as error:
        told = error.problems or (error.message,)
    assert told
    assert all(text.isprintable() for text in told)


@pytest.mark.parametrize("name", ["../cpu-quick", "", "CPU", "cpu-quick.toml/..", "cpu-quick\n"])
def test_a_track_is_a_name_not_a_path(name: str) -> None:
    with pytest.raises(RecipeError):
        load_track(name, TRACKS)


def test_a_missing_track_is_named() -> None:
    with pytest.raises(RecipeError, match="no track 'cpu-quik'") as caught:
        load_track("cpu-quik", TRACKS)
    assert caught.value.hint == f"did you mean {TRACKS / 'cpu-quick.toml'}?"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_the_first_31_bits_of_the_hash_of_nonce_and_index(name: str) -> None:
    track = load_track(name, TRACKS).track
    seeds = seed_values(track, 1000)
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_values(track) == seeds[: track.seeds.count]
    assert seed_values(track, 0) == []
    bits = bin(int(hashlib.sha256(f"{track.seeds.nonce}7".encode()).hexdigest(), 16))[2:].zfill(256)
    assert seed_value(track, 7) == seeds[7] == int(bits[:31], 2)


def test_seeds_of_tracks_differ() -> None:
    first = [seed_values(named.track, 5) for named in load_tracks(TRACKS)]
    assert len({tuple(seeds) for seeds in first}) == len(first)


def test_folder_without_tracks(tmp_path: Path) -> None:
    assert load_tracks(tmp_path) == []
