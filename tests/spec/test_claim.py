"""What a systems-only change may change, decided from the fields."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cli
from bench.errors import RecipeError
from bench.spec.claim import SYSTEMS_FIELDS, SYSTEMS_TABLES, beyond_systems, require_claim
from bench.spec.submission import load, method_sha256
from bench.spec.template import new_recipe
from tests.spec.recipes import FIELDS, ROOT, recipe

BASE = "[model]\ndepth = 4\n[horizon]\niterations = 10\n"
METHOD = {
    "model.depth = 5": "model.depth",
    "optimizer.muon.lr = 0.03": "optimizer.muon.lr",
    "batch.tokens = 8192": "batch.tokens",
    'precision.compute = "float32"': "precision.compute",
    'precision.fp8 = "tensorwise"': "precision.fp8",
    "eval.validation_bytes = 1000": "eval.validation_bytes",
    "data.shards = 3": "data.shards",
}
MACHINE = (
    "compile.enabled = false",
    "compile.manual_gc_every_steps = 50",
    'kernels.attention = "reference"',
    "batch.device_sequences = 8",
    "precision.deterministic = true",
    "checkpoint.every_steps = 5",
    "log.every_steps = 10",
    "eval.every_steps = 100",
)


@given(chosen=st.sets(st.sampled_from(MACHINE)))
def test_what_is_the_machines_may_change(chosen: set[str]) -> None:
    assert beyond_systems(recipe(BASE), recipe("\n".join([*sorted(chosen), BASE]))) == []


@given(method=st.sampled_from(sorted(METHOD)), chosen=st.sets(st.sampled_from(MACHINE)))
def test_what_is_learnt_may_not(method: str, chosen: set[str]) -> None:
    base = recipe("horizon.iterations = 10")
    changed = recipe("\n".join([method, *sorted(chosen), "horizon.iterations = 10"]))
    assert beyond_systems(base, changed) == [METHOD[method]]


def test_micro_batches_matter_where_the_batch_grows_by_them() -> None:
    warm = "schedule.batch_warmup.ratio = 0.2\nhorizon.iterations = 10\n"
    assert beyond_systems(recipe(warm), recipe(warm + "batch.device_sequences = 8")) == [
        "batch.device_sequences"
    ]


def test_every_field_named_is_one() -> None:
    assert set(FIELDS) >= SYSTEMS_FIELDS
    assert all(any(field.startswith(table) for field in FIELDS) for table in SYSTEMS_TABLES)


def test_a_claim_is_no_part_of_the_method_and_is_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(BASE)
    (tmp_path / "fast.toml").write_text('base = "slow"\nsystems_only = "slow"\n[compile]\nenabled = false\n')
    (tmp_path / "next.toml").write_text('base = "fast"\n[model]\ndepth = 5\n')
    fast = load(tmp_path / "fast.toml")
    assert fast.recipe.systems_only == "slow"
    assert fast.sha256 == method_sha256(recipe(BASE + "[compile]\nenabled = false\n"))
    assert load(tmp_path / "next.toml").recipe.systems_only is None
    require_claim(fast, tmp_path)
    require_claim(load(tmp_path / "next.toml"), tmp_path)


@pytest.mark.parametrize("claimed", ["slow", "absent", "../slow"])
def test_a_false_claim_is_refused_before_it_runs(claimed: str, tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(BASE)
    (tmp_path / "fast.toml").write_text(f'base = "slow"\nsystems_only = "{claimed}"\n[loss]\nz_loss = 0.1\n')
    with pytest.raises(RecipeError) as caught:
        require_claim(load(tmp_path / "fast.toml"), tmp_path)
    assert "z_loss" in caught.value.message or claimed != "slow"


def test_check_tells_a_false_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "submissions"
    folder.mkdir()
    (folder / "slow.toml").write_text(BASE)
    (folder / "fast.toml").write_text('base = "slow"\nsystems_only = "slow"\n[loss]\nz_loss = 0.1\n')
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["check"]) == RecipeError.exit_code
    told = capsys.readouterr()
    assert "loss.z_loss" in told.err
    assert "slow: ok" in told.out
    assert "fast: ok" not in told.out


def test_a_new_recipe_says_how_to_claim() -> None:
    assert '# systems_only = "slow"' in new_recipe("fast", "slow", recipe(BASE))
