"""The recipe explains itself: each field says what it is, each number has a range, each table a source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec import inspect

from bench.spec.recipe import DESCRIPTIVE, Recipe

Field = tuple[str, inspect.Type, list[str]]


def leaves(struct: inspect.StructType, path: str = "") -> Iterator[Field]:
    """(path, type without its annotations, descriptions) of each field that is no table."""
    for field in struct.fields:
        kinds, descriptions = parts(field.type)
        tables = [kind for kind in kinds if isinstance(kind, inspect.StructType)]
        if tables:
            yield from leaves(tables[0], f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", kinds[0], descriptions


def parts(kind: inspect.Type) -> tuple[list[inspect.Type], list[str]]:
    """The types that a field may have and the descriptions it gives, whatever they are wrapped in."""
    if isinstance(kind, inspect.Metadata):
        kinds, descriptions = parts(kind.type)
        return kinds, [*descriptions, str((kind.extra_json_schema or {}).get("description", ""))]
    if isinstance(kind, inspect.UnionType):
        found = [parts(each) for each in kind.types]
        return [one for kinds, _ in found for one in kinds], [one for _, told in found for one in told]
    return [kind], []


def recipe_type() -> inspect.StructType:
    """The recipe's own."""
    found = inspect.type_info(Recipe)
    assert isinstance(found, inspect.StructType)
    return found


FIELDS = {path: (kind, descriptions) for path, kind, descriptions in leaves(recipe_type())}


@pytest.mark.parametrize("path", [path for path in FIELDS if path not in DESCRIPTIVE])
def test_each_field_says_what_it_is(path: str) -> None:
    assert any(FIELDS[path][1]), path


@pytest.mark.parametrize("path", FIELDS)
def test_each_number_has_a_range(path: str) -> None:
    kind, _ = FIELDS[path]
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        assert {kind.ge, kind.gt} != {None}
        assert {kind.le, kind.lt} != {None}


def test_tables_name_the_sources_of_what_they_hold() -> None:
    for path in ("model", "optimizer.muon", "schedule", "schedule.batch_warmup", "precision", "model.bigram"):
        struct = recipe_type()
        for name in path.split("."):
            kinds, _ = parts(next(field.type for field in struct.fields if field.name == name))
            (struct,) = (kind for kind in kinds if isinstance(kind, inspect.StructType))
        assert "arXiv" in (struct.cls.__doc__ or ""), path
