"""The calculator: the three published candidates come out, nothing is left out, the recipes are recipes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli
from bench.experiments.architecture import (
    aspect_ratio,
    balanced,
    enumerate_shapes,
    ranked,
    recipe_text,
    shape,
)
from bench.spec.plan import model_config
from bench.spec.submission import load
from model.flops import parameters
from tests.records.sample import ROOT

M38 = 38_000_000


@pytest.mark.parametrize(
    ("depth", "width", "vocab", "total_m", "off", "shares", "a_layer_k"),
    [
        (29, 192, 65536, 38.0, -0.0001, (33.12, 33.76, 33.12), 442),
        (4, 512, 24576, 37.7, -0.0066, (33.33, 33.33, 33.33), 3146),
        (7, 384, 32768, 37.6, -0.0118, (33.51, 32.98, 33.51), 1769),
    ],
)
def test_the_three_published_candidates(
    depth: int, width: int, vocab: int, total_m: float, off: float, shares: tuple[float, ...], a_layer_k: int
) -> None:
    found = shape(depth, width, vocab, 64)
    assert found in balanced(enumerate_shapes(M38, 64))
    assert found.heads == width // 64
    assert found.total / 1e6 == pytest.approx(total_m, abs=0.05)
    assert found.total / M38 - 1 == pytest.approx(off, abs=5e-5)
    assert [100 * share for share in found.shares] == pytest.approx(list(shares), abs=0.005)
    assert round(found.a_layer / 1000) == a_layer_k


def test_the_goldilocks_needs() -> None:
    """Published with 37.7 M: 754 M tokens, about 3.6 B characters, 15 shards, 1.5 GB; tied about 25 M."""
    found = shape(4, 512, 24576, 64)
    assert found.imbalance == 0.0
    assert found.needs.tokens / 1e6 == pytest.approx(754, abs=1.5)
    assert found.needs.characters / 1e9 == pytest.approx(3.6, abs=0.05)
    assert (found.needs.shards, found.needs.disk_bytes) == (15, 1_500_000_000)
    assert found.total_if_tied / 1e6 == pytest.approx(25.2, abs=0.1)
    assert shape(4, 512, 24576, 64, is_tied=True).shares == (0.5, 0.5)


@given(
    params=st.integers(200_000, 3_000_000),
    head_dim=st.sampled_from([16, 32, 64]),
    tied=st.booleans(),
    tolerance=st.floats(0.0, 0.2),
)
@settings(max_examples=25)
def test_the_enumeration_is_the_brute_force_one(
    params: int, head_dim: int, tied: bool, tolerance: float
) -> None:
    vocabs = (512, 1024, 4096)
    widths = range(head_dim, 641, head_dim)
    wanted = set()
    for vocab, width, depth in itertools.product(vocabs, widths, range(1, 129)):
        total = (1 if tied else 2) * vocab * width + 12 * width * width * depth
        if abs(total - params) <= tolerance * params and width >= depth:
            made = model_config_width(depth, width // depth, head_dim)
            if made == width:
                wanted.add((vocab, width, depth))
    found = enumerate_shapes(params, head_dim, is_tied=tied, tolerance=tolerance, vocab_sizes=vocabs)
    assert {(one.vocab_size, one.width, one.depth) for one in found if one.width <= 640} == wanted
    assert len(found) == len({(one.vocab_size, one.width, one.depth) for one in found})


def model_config_width(depth: int, aspect: int, head_dim: int) -> int:
    return -(-depth * aspect // head_dim) * head_dim


def test_ranks() -> None:
    shapes = enumerate_shapes(M38, 64)
    by_balance = ranked(shapes, M38)
    assert [one.imbalance for one in by_balance] == sorted(one.imbalance for one in shapes)
    by_speed = ranked(shapes, M38, by_throughput=True)
    assert [one.flops_a_token for one in by_speed] == sorted(one.flops_a_token for one in shapes)
    assert by_balance[0].imbalance < 1e-9


@pytest.mark.parametrize("tied", [False, True])
def test_the_recipes_are_what_was_counted(tied: bool, tmp_path: Path) -> None:
    """The model of the recipe has the counted parameters, but for two scalars a layer."""
    shutil.copytree(ROOT / "submissions", tmp_path, dirs_exist_ok=True)
    params = 25_200_000 if tied else M38
    shapes = ranked(balanced(enumerate_shapes(params, 64, is_tied=tied)), params)[:4]
    assert shapes
    for one in shapes:
        path = tmp_path / "written.toml"
        path.write_text(recipe_text(one))
        made = model_config(load(path).recipe)
        assert (made.depth, made.width, made.num_heads) == (one.depth, one.width, one.heads)
        assert sum(parameters(made).values()) - one.total == 2 * one.depth
        assert aspect_ratio(one) * one.depth <= one.width


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("submissions", "leaderboard/tracks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["arch", "--params", "38M", "--head-dim", "64", "--balanced"]
    assert cli.main([*words, "--write", "goldilocks"]) == 0
    out = capsys.readouterr().out
    assert "    4   512     8   24576   37.75M -0.66%  33.33% / 33.33% / 33.33%" in out
    assert cli.main(["check", "submissions/goldilocks.toml"]) == 0
    assert cli.main(["plan", "submissions/goldilocks.toml"]) == 0
    capsys.readouterr()
    assert cli.main([*words, "--write", "goldilocks"]) == 2  # never over a recipe
    assert cli.main(["arch", "--params", "25.2M", "--tied", "--balanced", "--json"]) == 0
    assert all(one["shape"]["wte"] == 0 for one in json.loads(capsys.readouterr().out)["shapes"])
    for wrong in (["--params", "38X"], ["--params", "0"], ["--params", "38M", "--head-dim", "63"]):
        assert cli.main(["arch", *wrong]) == 2
    assert cli.main(["arch", "--params", "1K"]) == 2
