"""A TOML file from a stranger: every fault is told at once, and none is anything but a RecipeError."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import RecipeError
from bench.spec.recipe import AdamWGroup, Recipe
from bench.spec.toml import MAX_FILE_BYTES, MAX_PROBLEMS, check_name, decode, merge, parse_toml, read_toml
from tests.spec.recipes import FIELDS, recipe


def problems(toml: str) -> tuple[str, ...]:
    """What is said of a recipe that must be refused."""
    with pytest.raises(RecipeError) as caught:
        recipe(toml)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert all(problem.isprintable() for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[model]\ndepht = 3", "model.depht: no such field; did you mean 'depth'?"),
        ("[modle]\ndepth = 3", "modle: no such field; did you mean 'model'?"),
        (
            "[optimizer.adamw.wte]\nbeta3 = 0.5",
            "optimizer.adamw.wte.beta3: no such field; did you mean 'beta2'?",
        ),
        ("[batch]\nzzzz = 1", "batch.zzzz: no such field; allowed: device_sequences, tokens"),
        ("[model]\ndepth = 0", "model.depth = 0: expected int >= 1 (layers)"),
        ("[model]\ndepth = 3.0", "model.depth = 3.0: expected int, got float"),
        ("[model]\ndepth = true", "model.depth = true: expected int, got bool"),
        ("[model]\nsmear = 1", "model.smear = 1: expected bool, got int"),
        ('[model]\ndepth = "3"', "model.depth = '3': expected int, got str"),
        ("model = 3", "model = 3: expected table, got int"),
        ("[[model]]\ndepth = 3", "model = [{'depth': 3}]: expected table, got array"),
        ("[schedule]\nwarmdown_ratio = 1.01", "schedule.warmdown_ratio = 1.01: expected float <= 1.0"),
        (
            '[schedule]\nwarmdown_shape = "round"',
            "schedule.warmdown_shape = 'round': invalid enum value 'round'; allowed: 'linear', 'cosine', ",
        ),
        (
            '[batch]\ntokens = "many"',
            "batch.tokens = 'many': invalid enum value 'many'; allowed: 'auto' (tokens a step)",
        ),
        ("[optimizer.muon]\nlr = nan", "optimizer.muon.lr = nan: expected float > 0.0"),
        ("[model]\nsmear_lambda = nan", "model.smear_lambda = nan: expected float >= -1000000.0"),
        ("[model]\nbackout_lambda = -inf", "model.backout_lambda = -inf: expected float >= -1000000.0"),
        (
            "[model]\nresid_lambda_last = 1e308",
            "model.resid_lambda_last = 1e+308: expected float <= 1000000.0",
        ),
        (
            "[optimizer.adamw.wte]\nlr = 0.1\nbeta1 = 1.0",
            "optimizer.adamw.wte.beta1 = 1.0: expected float < 1.0",
        ),
        ('title = "a\\u001b[2J"', "title = 'a\\x1b[2J': control characters"),
        ('title = "two\\nlines"', "title = 'two\\nlines': control characters"),
        ('notes = "\\u202egro"', "notes = '\\u202egro': control characters"),
        ('links = ["http://example.com"]', "links = ['http://example.com']: expected str matching"),
        ('links = ["https://a.example\\n"]', "links = ['https://a.example\\n']: expected str matching"),
        ('[model]\nwindow_pattern = "SSS\\n"', "model.window_pattern = 'SSS\\n': expected str matching"),
        ('"\\u001b[2J" = 1', "'\\x1b[2J': no such field; allowed: "),
    ],
)
def test_a_fault_is_told_with_place_value_and_what_is_allowed(toml: str, told: str) -> None:
    [problem] = problems(toml)
    assert problem.startswith(told)


def test_all_faults_of_a_file_are_told_in_its_order() -> None:
    found = problems(
        "title = 3\n[model]\ndepth = 0\nsmeer = true\n[batch]\ntokens = -1\n[hroizon]\ntokens = 1"
    )
    assert [problem.split()[0] for problem in found] == [
        "title",
        "model.depth",
        "model.smeer:",
        "batch.tokens",
        "hroizon:",
    ]


@given(field=st.sampled_from(FIELDS), value=st.sampled_from(["nan", "inf", "-inf"]))
def test_no_field_takes_a_number_that_is_not_finite(field: str, value: str) -> None:
    assert any(problem.startswith(f"{field} = ") for problem in problems(f"{field} = {value}"))


@given(field=st.sampled_from(FIELDS))
def test_every_field_refuses_a_table(field: str) -> None:
    assert any(problem.startswith(f"{field} = ") for problem in problems(f"{field} = {{a = 1}}"))


def test_a_missing_field_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        decode({}, AdamWGroup, "group")
    assert caught.value.problems == ("lr: missing",)


@pytest.mark.parametrize(
    "toml",
    [
        "a = 1\na = 2",
        "[model]\ndepth = 4\n[model]\ndepth = 5",
        "model.depth = 4\n[model]\ndepth = 5",
        "[model",
        "depth = ",
        "x = 0o9",
        "a = " + "1" * 5000,
        'a = "\\ud800"',
    ],
)
def test_what_is_not_toml_is_told_in_one_line(toml: str) -> None:
    with pytest.raises(RecipeError, match="not TOML") as caught:
        recipe(toml)
    assert caught.value.message.isprintable()


def test_what_is_not_utf8_is_told_in_one_line() -> None:
    for content in (b"\xff\xfe", "title = 'ä'".encode("latin-1"), "title = 'a'".encode("utf-16")):
        with pytest.raises(RecipeError, match="not TOML"):
            parse_toml(content, "x.toml")


@pytest.mark.parametrize(
    "toml",
    [
        "a" + ".a" * 900 + " = 1",
        "a" + ".a" * 20_000 + " = 1",
        "[" + "a." * 900 + "a]\nb = 1",
        "a = " + "[" * 390 + "]" * 390,
        "a = " + "[" * 20_000 + "]" * 20_000,
        "a = " + "{a = " * 390 + "1" + "}" * 390,
        "model.depth" + ".a" * 900 + " = 1",
        "a.b.c.d.e.f.g.h.i.j = 1",
    ],
)
def test_deep_nesting_is_refused(toml: str) -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        recipe(toml)


def test_the_deepest_field_is_not_too_deep() -> None:
    assert recipe("optimizer.adamw.wte = {lr = 0.1, beta1 = 0.5}").optimizer.adamw.wte.beta1 == 0.5


@pytest.mark.parametrize(
    "toml",
    [
        "\n".join(f"k{i} = 1" for i in range(6000)),
        "[model]\n" + "\n".join(f"k{i} = 1" for i in range(6000)),
        "a = [" + "1," * 30_000 + "]",
        '"' + "k" * 60_000 + '" = 1',
        'title = "' + "t" * 60_000 + '"',
        "[model]\ndepth = " + "9" * 4000,
        "links = [" + '"https://a",' * 4000 + "]",
    ],
    ids=["fields", "fields of a table", "array", "key", "text", "number", "links"],
)
def test_a_bomb_costs_little_and_says_little(toml: str) -> None:
    found = problems(toml)
    assert sum(map(len, found)) < 20_000
    assert len(found) <= MAX_PROBLEMS + 1


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: reading it whole would take all memory
    with pytest.raises(RecipeError, match="too long") as caught:
        read_toml(path)
    assert f"{MAX_FILE_BYTES:,}" in caught.value.hint


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "run7.toml").write_text("")
    with pytest.raises(RecipeError, match="is a directory"):
        read_toml(tmp_path / "folder.toml")
    with pytest.raises(RecipeError, match="no such file") as caught:
        read_toml(tmp_path / "run8.toml")
    assert caught.value.hint == f"did you mean {tmp_path / 'run7.toml'}?"
    with pytest.raises(RecipeError, match="no such file"):
        read_toml(tmp_path / "none" / "run8.toml")
    if os.geteuid():
        (tmp_path / "run7.toml").chmod(0)
        with pytest.raises(RecipeError, match="permission"):
            read_toml(tmp_path / "run7.toml")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../run7",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "run7.toml\n",
        "A",
        "a..b",
        "-a",
        "a b",
        "ä",
        "a" * 65,
        "a\0",
    ],
)
def test_names_hold_no_path(name: str) -> None:
    with pytest.raises(RecipeError, match="is not a name") as caught:
        check_name(name, "base")
    assert caught.value.message.isprintable()


@given(name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: ".." not in name))
def test_a_name_stays_in_its_folder(name: str) -> None:
    folder = Path("/submissions")
    assert (folder / f"{check_name(name, 'base')}.toml").parent == folder


tables = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
).filter(lambda value: isinstance(value, dict))


@given(a=tables, b=tables, c=tables)
def test_laying_over_is_associative_and_keeps_the_later(
    a: dict[str, object], b: dict[str, object], c: dict[str, object]
) -> None:
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)
    assert all(not isinstance(b[key], int) or merge(a, b)[key] == b[key] for key in b)
    assert set(merge(a, b)) == set(a) | set(b)
    assert merge(a, c, frozenset("abc")) == {**a, **c}


@given(value=st.floats())
def test_a_strength_is_a_number_that_float32_holds(value: float) -> None:
    data = {"model": {"smear_lambda": value}}
    if abs(value) <= 1e6:
        assert decode(data, Recipe, "x").model.smear_lambda == value
    else:
        with pytest.raises(RecipeError):
            decode(data, Recipe, "x")


@pytest.mark.parametrize("number", ["0x" + 5000 * "f", "-" + str(2**63 + 1), str(2**63)])
@pytest.mark.parametrize("toml", ["[model]\ndepth = {}", "links = [[{}]]", "x = {{y = [{}]}}"])
def test_a_number_of_more_than_64_bits_is_refused(number: str, toml: str) -> None:
    with pytest.raises(RecipeError, match="more than 64 bits"):
        parse_toml(toml.format(number).encode(), "x")


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_the_largest_numbers_of_toml_are_read(number: int) -> None:
    assert parse_toml(f"x = {number}".encode(), "x") == {"x": number}
