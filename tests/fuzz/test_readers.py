"""Twenty thousand recipes and records of strangers: an exit code each, no traceback, hang or other file."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import cli
from bench.records.schema import decode, encode
from tests.fuzz.mutation import mutated_bytes, mutated_json, mutated_toml
from tests.fuzz.readers import read_recipe, read_record
from tests.records.sample import sample
from tests.spec.recipes import FIELDS, SHIPPED, SUBMISSIONS

# The slow stage: half recipes, half records. The seed is hypothesis's own draw, the same ones in every run.
MANY, FEW, COMMANDS = 10_000, 100, 50
SEEDS = st.integers(0, 2**64 - 1)
RECIPE = (SUBMISSIONS / "run1.toml").read_bytes()
RECORD, LOG = encode(sample()[0]), sample()[1]


def many(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, the same in every run."""
    return settings(
        max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def stranger_recipe(seed: int) -> bytes:
    """The recipe of one seed; one in eight stands on others, in one of three its bytes are changed."""
    source = random.Random(seed)
    content = (SUBMISSIONS / f"{source.choice(SHIPPED)}.toml").read_bytes() if seed % 8 == 0 else RECIPE
    return mutated_toml(source, content, FIELDS) if seed % 3 else mutated_bytes(source, content)


def stranger_record(seed: int) -> tuple[bytes, bytes]:
    """Record and log of one seed; in three of four the one is changed as JSON, in one of four as bytes."""
    source = random.Random(seed)
    record = mutated_bytes(source, RECORD) if seed % 4 == 0 else mutated_json(source, RECORD)
    return record, mutated_bytes(source, LOG) if seed % 7 == 0 else LOG


def recipe_holds(folder: Path, seed: int) -> None:
    """The one property of recipes: fine, or a RecipeError, or a plan refused."""
    assert read_recipe(stranger_recipe(seed), folder) in (0, 2, 3)


def record_holds(folder: Path, seed: int) -> None:
    """The one property of records: fine, or refused."""
    assert read_record(*stranger_record(seed), folder) in (0, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples share: making one for each takes longer than reading."""
    return tmp_path_factory.mktemp("strangers")


@given(seed=SEEDS)
@many(FEW)
def test_a_few_recipes(folder: Path, seed: int) -> None:
    recipe_holds(folder, seed)


@given(seed=SEEDS)
@many(FEW)
def test_a_few_records(folder: Path, seed: int) -> None:
    record_holds(folder, seed)


@pytest.mark.slow
@given(seed=SEEDS)
@many(MANY)
def test_many_recipes(folder: Path, seed: int) -> None:
    recipe_holds(folder, seed)


@pytest.mark.slow
@given(seed=SEEDS)
@many(MANY)
def test_many_records(folder: Path, seed: int) -> None:
    record_holds(folder, seed)


@given(seed=SEEDS)
@many(COMMANDS)
def test_commands_end_as_documented(folder: Path, seed: int) -> None:
    """check, plan and verify of the whole program: exit code, one error line, a hint, no traceback."""
    recipe, record = folder / "command.toml", folder / "0-00000000.json"
    recipe.write_bytes(stranger_recipe(seed))
    record.write_bytes(stranger_record(seed)[0])
    commands = {
        (0, 2): ["check", str(recipe)],
        (0, 2, 3): ["plan", str(recipe), "--track", "cpu-quick", "--device", "cpu", "--json"],
        (0, 8): ["verify", str(record), "--markdown"],
    }
    for codes, words in commands.items():
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert cli.main(words) in codes
        assert "Traceback" not in err.getvalue()
        assert "\x1b" not in out.getvalue() + err.getvalue()


def test_the_mutations_reach_the_rules(folder: Path) -> None:
    """A fuzzer all of whose records fail to parse tests nothing but the parser."""
    codes = [read_recipe(stranger_recipe(seed), folder) for seed in range(1, 60)]
    assert {0, 2} <= set(codes)
    parsed = [seed for seed in range(60) if _is_a_record(stranger_record(seed)[0])]
    assert 10 < len(parsed) < 60


def _is_a_record(content: bytes) -> bool:
    try:
        return bool(decode(content))
    except ValueError:
        return False
