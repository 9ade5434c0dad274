"""Submissions: chains of bases, hashes, differences and short names."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import RecipeError
from bench.spec.recipe import DESCRIPTIVE, AdamW, Recipe
from bench.spec.submission import (
    MAX_BASES,
    UNNAMED,
    decode_recipe,
    differences,
    flatten,
    load,
    method,
    method_sha256,
    sha256,
    short_name,
)
from tests.spec.recipes import FIELDS, SHIPPED, SUBMISSIONS, corrupted, recipe


def write(folder: Path, **files: str) -> None:
    """Recipes by name."""
    for name, toml in files.items():
        (folder / f"{name}.toml").write_text(toml, encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_come_back_from_json_the_same(name: str) -> None:
    made = load(SUBMISSIONS / f"{name}.toml")
    back = decode_recipe(json.loads(msgspec.json.encode(made.recipe)), name)
    assert back == made.recipe
    assert method_sha256(back) == made.sha256


@given(content=corrupted())
@settings(max_examples=120)
def test_no_corruption_is_anything_but_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("submissions") / "stranger.toml"
    path.write_bytes(content)
    try:
        made = load(path, SUBMISSIONS)
    except RecipeError as error:
        told = (error.message, error.hint, *error.problems)
    else:
        told = (made.name,)
        assert decode_recipe(msgspec.to_builtins(made.recipe), "again") == made.recipe
    assert all(text and text.isprintable() for text in told)


def test_a_child_overrides_its_base_field_by_field(tmp_path: Path) -> None:
    write(
        tmp_path,
        top="title = 'top'\nnotes = 'n'\nlinks = ['https://a.example']\n"
        "[model]\ndepth = 6\nhead_dim = 64\n[horizon]\ntokens = 9",
        middle="base = 'top'\n[model]\ndepth = 7\n[optimizer.adamw.wte]\nlr = 0.1",
        leaf="base = 'middle'\ntitle = 'leaf'\n[horizon]\niterations = 5\n[optimizer.adamw.wte]\nbeta1 = 0.5",
    )
    made = load(tmp_path / "leaf.toml").recipe
    assert (made.model.depth, made.model.head_dim) == (7, 64)
    assert (made.horizon.iterations, made.horizon.tokens, made.horizon.param_data_ratio) == (5, None, None)
    assert (made.title, made.notes, made.links, made.base) == ("leaf", "", (), "middle")
    wte = AdamW().wte
    assert made.optimizer.adamw.wte == msgspec.structs.replace(wte, lr=0.1, beta1=0.5)


@pytest.mark.parametrize("group", AdamW.__struct_fields__)
def test_a_group_given_in_part_keeps_its_own_defaults(group: str) -> None:
    """Each group's defaults are its own: one field must not put the others back to those of another group."""
    before = getattr(AdamW(), group)
    after = getattr(recipe(f"[optimizer.adamw.{group}]\nlr = 0.125").optimizer.adamw, group)
    assert after == msgspec.structs.replace(before, lr=0.125)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a": "base = 'a'"}, "a -> a"),
        ({"a": "base = 'b'", "b": "base = 'a'"}, "a -> b -> a"),
        ({"a": "base = 'b'", "b": "base = 'c'", "c": "base = 'b'"}, "a -> b -> c -> b"),
    ],
)
def test_a_circle_of_bases_is_refused(tmp_path: Path, files: dict[str, str], told: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(RecipeError, match=f"in a circle: {told}$"):
        load(tmp_path / "a.toml")


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    write(
        tmp_path, r0="[model]\ndepth = 3", **{f"r{i}": f"base = 'r{i - 1}'" for i in range(1, MAX_BASES + 2)}
    )
    assert load(tmp_path / f"r{MAX_BASES}.toml").recipe.model.depth == 3
    with pytest.raises(RecipeError, match=f"more than {MAX_BASES} bases") as caught:
        load(tmp_path / f"r{MAX_BASES + 1}.toml")
    assert caught.value.hint == "flatten the chain"


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    write(tmp_path, run6="", run7="base = 'run66'")
    with pytest.raises(RecipeError, match=r"run66\.toml: no such file") as caught:
        load(tmp_path / "run7.toml")
    assert caught.value.hint == f"did you mean {tmp_path / 'run6.toml'}?"


@pytest.mark.parametrize("base", ["../secret", "/etc/passwd", "a/b", "..", "a\\\\b", "run6\\n", "", "A"])
def test_a_base_is_a_name_not_a_path(tmp_path: Path, base: str) -> None:
    inside = tmp_path / "submissions"
    inside.mkdir()
    write(tmp_path, secret="title = 'secret'")
    write(inside, leaf=f'base = "{base}"')
    with pytest.raises(RecipeError, match="is not a name"):
        load(inside / "leaf.toml")


@pytest.mark.parametrize("base", ["3", "['a']", "{a = 1}", "true"])
def test_a_base_is_text(tmp_path: Path, base: str) -> None:
    write(tmp_path, leaf=f"base = {base}\n[model]\ndepth = 0")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "leaf.toml")
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["base", "model.depth"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("track", "'../x'"),
        ("track", "'a/b'"),
        ("data.dataset", "'../x'"),
        ("data.dataset", "'folder:../x'"),
        ("data.dataset", "'folder:/etc'"),
        ("data.dataset", "'https://x'"),
        ("data.dataset", '"x\\n"'),
    ],
)
def test_other_names_are_names_too(field: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(f"{field} = {value}")
    assert caught.value.problems[0].startswith(f"{field} = ")


@pytest.mark.parametrize("name", ["Run7.toml", "a b.toml", "..toml"])
def test_the_file_itself_must_have_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(RecipeError, match="is not a name"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[horizon]", "horizon: exactly one of .* must be given, none is"),
        ("[horizon]\ntokens = 1\nseconds = 1", "tokens and seconds are"),
        ("[model]\nkv_group = 2\nlatent_attention = { kv_rank = 8 }", "every head has keys of its own"),
        ("[model]\nhead_dim = 64\nlatent_attention = { kv_rank = 8 }", "a head has 64 channels"),
        ("[model]\nlatent_attention = { kv_rank = 8 }\npositions = 'none'", "alike at every position"),
        (
            "[model]\nlatent_attention = { kv_rank = 8 }\n[optimizer.muon]\nqk_clip = 'logit'",
            "no matrix makes a head's keys alone",
        ),
        ("[model]\ndepth = 1\nvalue_residual = true", "model.value_residual: one layer has no later one"),
        (
            "[precision]\nembeddings = 'bfloat16'\ncompute = 'float16'",
            "set embeddings to float32, or compute to",
        ),
        ("[precision]\nembeddings = 'bfloat16'\ncompute = 'float32'", "with compute = float32"),
        (
            "[precision]\nembeddings = 'bfloat16'\n[model]\ntied_embeddings = true",
            "the table is the head, too",
        ),
        ("[schedule.batch_warmup]\nratio = 0.1\ntokens = 5", "tokens and ratio are given"),
        ("[model]\nkv_group = 5", "model.kv_group = 5: does not divide the 6 heads"),
        (
            "[model]\ndepth = 1\naspect_ratio = 8\nhead_dim = 8",
            "model.ve_gate_channels = 12: more than the width, 8",
        ),
        (
            "[model]\ndepth = 1\naspect_ratio = 8\nhead_dim = 16",
            "model.smear_channels = 24: more than the width, 16",
        ),
        (
            "[model]\nattention_gate_channels = 1000",
            "model.attention_gate_channels = 1000: more than the width, 768",
        ),
    ],
)
def test_contradictions_are_refused(toml: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(toml)
    assert any(re.search(told, problem) for problem in caught.value.problems)


@pytest.mark.parametrize("kind", ["param_data_ratio", "iterations", "tokens", "flops", "seconds"])
def test_each_horizon_stands_alone(kind: str) -> None:
    horizon = recipe(f"[horizon]\n{kind} = 7").horizon
    assert {field: value for field, value in msgspec.to_builtins(horizon).items() if value is not None} == {
        kind: 7
    }


@given(
    order=st.randoms(use_true_random=False),
    words=st.text(st.characters(exclude_categories=("C", "Z")), max_size=30),
)
def test_the_hash_is_of_the_method_alone(order: random.Random, words: str) -> None:
    made = load(SUBMISSIONS / "quick.toml").recipe

    def shuffled(table: dict[str, object]) -> dict[str, object]:
        items = [(key, shuffled(value) if isinstance(value, dict) else value) for key, value in table.items()]
        order.shuffle(items)
        return dict(items)

    data = shuffled(msgspec.to_builtins(made))
    data |= {
        "title": words,
        "notes": words,
        "links": ["https://b.example"],
        "base": "b",
        "track": "h200-5min",
    }
    assert set(DESCRIPTIVE) <= set(data)
    assert method_sha256(decode_recipe(data, "x")) == method_sha256(made)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_method_is_hashed_told_and_named(field: str) -> None:
    """A change that the hash, the difference or the name left out would make two methods one."""
    before = Recipe()
    after = recipe(f"{field} = {json.dumps(another(field, flatten(method(before))[field]))}")
    assert method_sha256(after) != method_sha256(before)
    assert field in [changed for changed, _, _ in differences(before, after)]
    assert (short_name(after) == short_name(before)) == (field in UNNAMED and field != "model.depth")


def another(field: str, value: object) -> object:
    """Another value of a field that is allowed."""
    words: dict[str, object] = {
        "model.window_pattern": "L",
        "model.value_embeddings": "none",
        "optimizer.muon.weight_decay_shape": "linear",
        "schedule.warmdown_shape": "cosine",
        "precision.compute": "float32",
        "precision.embeddings": "bfloat16",
        "data.dataset": "stdlib",
        "model.kv_group": 2,
        "model.positions": "none",
        "optimizer.muon.qk_clip": "logit",
        "optimizer.muon.weight_decay_rule": "depth-squared",
        "schedule.warmup_ratio": 0.1,
        "precision.fp8": "rowwise",
        "compile.mode": "max-autotune-no-cudagraphs",
        "optimizer.muon.polar_steps": 4,
        "model.bigram.num_hashes": 2,
        "optimizer.muon.equilibrate": "row",
        "batch.tokens": 2**20,
        "batch.device_sequences": 8,
    }
    if field in words:
        return words[field]
    if field.startswith("kernels."):
        return "reference"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 8
    return 0.5 * value or 0.25 if isinstance(value, float) else 7


def test_short_names() -> None:
    run6, run7 = (load(SUBMISSIONS / f"{name}.toml").recipe for name in ("run6-fixed", "run7"))
    assert short_name(run7, run6) == "d22+MuonClip weight_rms+warmdown 0.85+ratio 12+batch 1M+fp8 tensorwise"
    assert short_name(run6, run7) == "d24+MuonClip off+warmdown 0.65+ratio 8+batch auto+fp8 off"
    assert short_name(run6, run6) == "d24"
    assert short_name(recipe("[batch]\ntokens = 786432")) == "batch 768K"
    assert short_name(recipe("[batch]\ntokens = 1000000")) == "batch 1,000,000"
    assert (
        short_name(recipe("[model]\nsmear = false\n[precision]\ncompute = 'float32'")) == "no smear+float32"
    )
    assert short_name(recipe("[optimizer.adamw.wte]\nlr = 0.1")) == "optimizer.adamw.wte.lr 0.1"


def test_a_long_name_is_cut() -> None:
    made = load(SUBMISSIONS / "quick.toml").recipe
    assert len(short_name(made).split("+")) == 7
    assert short_name(made).endswith(" more")


@given(names=st.tuples(st.sampled_from(SHIPPED), st.sampled_from(SHIPPED)))
def test_differences_are_what_leads_from_one_to_the_other(names: tuple[str, str]) -> None:
    a, b = (load(SUBMISSIONS / f"{name}.toml").recipe for name in names)
    flat = flatten(method(a))
    for field, before, after in differences(a, b):
        assert flat[field] == before
        flat[field] = after
    assert flat == flatten(method(b))
    assert (differences(a, b) == []) == (method_sha256(a) == method_sha256(b))


def test_bases_come_from_the_folder_named(tmp_path: Path) -> None:
    outside = tmp_path / "mine"
    outside.mkdir()
    shutil.copytree(SUBMISSIONS, tmp_path, dirs_exist_ok=True)
    write(outside, mine="base = 'run6-fixed'")
    assert load(outside / "mine.toml", tmp_path).recipe.model.depth == 24
    with pytest.raises(RecipeError):
        load(outside / "mine.toml")


def test_the_hash_is_known() -> None:
    """A change of this hash is a change of every record's recipe_sha256."""
    assert sha256({"b": 1, "a": [1.5, None, "x"]}) == sha256({"a": [1.5, None, "x"], "b": 1})
    assert sha256({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
