"""A new recipe as text: its base, and every field as a comment with its value, meaning and range."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec

from bench.spec.recipe import DESCRIPTIVE, Recipe

WIDTH = 110
HEAD = """\
# Everything that is commented out is the base's. Uncomment what you change, delete the rest;
# `bench check` lists every problem, `bench diff` what you changed, `bench plan` what a run would cost.
"""


def new_recipe(title: str, base: str, recipe: Recipe) -> str:
    """TOML of a recipe that stands on `base` and changes nothing yet.

    Args:
        recipe: the base's, resolved.
    """
    lines = [
        HEAD,
        f"title = {toml_value(title)}  # one line for people",
        'notes = ""  # what you expect, then what came out, failures included',
        "links = []  # https://, at most 20",
        f"base = {toml_value(base)}",
        f"# systems_only = {toml_value(base)}  # claims to compute what it computes, faster: RULES.md, 11",
        f"# track = {toml_value(recipe.track)}",
    ]
    for field in msgspec.structs.fields(recipe):
        if field.name not in DESCRIPTIVE:
            lines += _table(field.name, getattr(recipe, field.name))
    return "\n".join(lines) + "\n"


def _table(path: str, table: msgspec.Struct) -> Iterator[str]:
    """One table's lines, then those of the tables in it; [horizon] would replace the base's: a comment."""
    about = (type(table).__doc__ or "").strip().split("\n\n")[0]
    yield ""
    yield from textwrap.wrap(" ".join(about.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")
    yield f"# [{path}]  # replaces the base's; exactly one field" if path == "horizon" else f"[{path}]"
    inner = []
    for field in msgspec.structs.fields(table):
        value = getattr(table, field.name)
        if isinstance(value, msgspec.Struct):
            inner.append((f"{path}.{field.name}", value))
        else:
            yield _line(field.name, value, field.type)
    for name, value in inner:
        yield from _table(name, value)


def _line(name: str, value: Any, kind: Any) -> str:
    told = "; ".join(_meaning(kind))
    if value is None:
        return f"# {name} is not given" + (f"  # {told}" if told else "")
    return f"# {name} = {toml_value(value)}" + (f"  # {told}" if told else "")


def _meaning(kind: Any) -> list[str]:
    """What a field is, and what it takes, from its type."""
    described, bounds, words, parts = [], [], [], [kind]
    for part in parts:
        if get_origin(part) is Literal:
            words += [toml_value(word) for word in get_args(part)]
        elif isinstance(part, msgspec.Meta):
            described += [part.description] if part.description else []
            bounds += _bounds(part)
        else:
            parts += [*get_args(part), *getattr(part, "__metadata__", ())]
    told = [*dict.fromkeys(described), *([" or ".join(words)] if words else [])]
    return [*told, ", ".join(dict.fromkeys(bounds))] if bounds else told


def _bounds(meta: msgspec.Meta) -> list[str]:
    signs = {">=": meta.ge, ">": meta.gt, "<=": meta.le, "<": meta.lt}
    found = [
        f"{sign} {bound:{'' if isinstance(bound, int) else 'g'}}"
        for sign, bound in signs.items()
        if bound is not None
    ]
    found += [f"a multiple of {meta.multiple_of:g}"] if meta.multiple_of is not None else []
    return found


def toml_value(value: object) -> str:
    """A scalar as TOML writes it; "none" where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    return "none" if value is None else repr(value)
