"""TOML files as checked values: every fault of a file at once, each with its place and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import tomli

from bench.errors import RecipeError

FIELDS_HINT = "the tables of bench/spec/ say what each field is, its unit and its range"
MAX_FILE_BYTES = 64 * 1024  # the largest honest recipe is 4 KB; a bomb is refused before it is parsed
MAX_DEPTH = 8  # the deepest honest table, optimizer.adamw.GROUP.field, is at 4
MAX_PROBLEMS = 50  # listed of one file
MAX_SUGGESTIONS = 10  # a table; difflib over thousands of unknown fields takes seconds
Struct = TypeVar("Struct", bound=msgspec.Struct)

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(name: str, what: str) -> str:
    """`name` if it is a plain file stem, so that no name in a file can point outside its folder."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise RecipeError(
            f"{what} {_shown(name)} is not a name",
            "names are 1 to 64 of a-z 0-9 . _ - and start with a letter or digit; paths are not allowed",
        )
    return name


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables, or a RecipeError that says where it stops being TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"{path}: {(error.strerror or str(error)).lower()}", nearest_file_hint(path)
        ) from error
    return parse_toml(data, str(path))


def parse_toml(data: bytes, source: str) -> dict[str, Any]:
    """The tables of a file's bytes; see `read_toml`."""
    if len(data) > MAX_FILE_BYTES:
        raise RecipeError(f"{source}: too long", f"a recipe or track holds at most {MAX_FILE_BYTES:,} bytes")
    too_deep = RecipeError(f"{source}: nested too deeply", "a recipe has tables of at most three levels")
    try:
        tables = tomli.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:  # tomli's own, not UTF-8, or a number of thousands of digits
        what = " ".join(str(error).split(";")[0].split())
        raise RecipeError(f"{source}: not TOML: {what}", "https://toml.io shows the syntax") from error
    if _is_deeper(tables, MAX_DEPTH):
        raise too_deep
    if _has_huge_number(tables):
        raise RecipeError(f"{source}: a whole number of more than 64 bits", "TOML has none larger")
    return tables


def _is_deeper(tables: dict[str, Any], depth: int) -> bool:
    """Whether tables and arrays nest deeper than `depth`, found without recursion."""
    level: list[Any] = [tables]
    for _ in range(depth):
        inside = (list(value.values()) if isinstance(value, dict) else value for value in level)
        level = [one for values in inside for one in values if isinstance(one, dict | list)]
    return bool(level)


def _has_huge_number(value: Any) -> bool:
    """Whether a whole number is beyond TOML's 64 bits; tomli reads it, and printing 5,000 digits fails."""
    if isinstance(value, dict | list):
        return any(map(_has_huge_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def nearest_file_hint(path: Path) -> str:
    """A "did you mean" over the files beside the missing one."""
    import difflib

    beside = (
        sorted(other.name for other in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    )
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"{path.parent} holds {', '.join(beside[:8]) or 'no such files'}"


def merge(
    base: dict[str, Any], override: dict[str, Any], exclusive: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """`base` with the tables of `override` laid over it; a table named in `exclusive` is replaced whole."""
    merged = dict(base)
    for key, value in override.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_tables and key not in exclusive else value
    return merged


def decode(data: dict[str, Any], kind: type[Struct], source: str) -> Struct:
    """`data` as a `kind`, or one RecipeError that lists every problem.

    Args:
        source: the file's name, for the message.
    """
    try:
        value = msgspec.convert(data, kind)
    except msgspec.ValidationError:
        problems = faults(data, kind, "")
        assert problems, "what msgspec refuses, faults() must name"
        raise problem_error(source, problems) from None
    problems = list(_not_finite(data, ""))
    if problems:
        raise problem_error(source, problems)
    return value


def problem_error(source: str, problems: list[str]) -> RecipeError:
    """The error that lists all problems of one file, or the first of very many."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = problems[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"... and {len(problems) - MAX_PROBLEMS} more")
    return RecipeError(
        f"{source}: {count}",
        FIELDS_HINT,
        problems=tuple(shown),
    )


def faults(data: dict[str, Any], kind: type[msgspec.Struct], path: str) -> list[str]:
    """Every unknown field, wrong type and out-of-range value of a table, in the file's order."""
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError:
        return _faults(data, kind, path)
    return list(_not_finite(data, path.removesuffix(".")))  # most tables are right, and this is quick


def _faults(data: dict[str, Any], kind: type[msgspec.Struct], path: str) -> list[str]:
    fields = _fields(kind)
    found = [
        f"{path}{name}: missing" for name, field in fields.items() if field.required and name not in data
    ]
    for key, value in data.items():
        place = f"{path}{_key(key)}"
        if key not in fields:
            suggestion = _did_you_mean(key, list(fields)) if len(found) < MAX_SUGGESTIONS else ""
            found.append(f"{place}: no such field{suggestion}")
            continue
        nested = fields[key].type
        if isinstance(nested, type) and issubclass(nested, msgspec.Struct) and isinstance(value, dict):
            found += faults(value, nested, f"{place}.")
            continue
        try:
            msgspec.convert(value, nested)
        except msgspec.ValidationError as error:
            found.append(f"{place} = {_shown(value)}: {_plain(str(error))}{_allowed(nested)}")
        else:
            found += _not_finite(value, place)
    return found


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """A table's fields by name; resolving their annotations takes a millisecond, a board has thousands."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _is_finite(value: Any) -> bool:
    kind = type(value)  # what TOML and JSON make is of these types themselves
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(_is_finite, value.values()))
    return not (kind is list or kind is tuple) or all(map(_is_finite, value))


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """Numbers that are infinite or not numbers: msgspec's bounds let inf pass where there is no upper one."""
    if _is_finite(value):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{_key(key)}" if place else _key(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _not_finite(inner, place)
    else:
        yield f"{place} = {value}: must be finite"


def _did_you_mean(key: str, allowed: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key[:64], allowed, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(sorted(allowed))}"


def _allowed(kind: Any) -> str:
    """The words a type takes, and what its field means."""
    words, meanings, parts = [], [], [kind]
    for part in parts:
        if get_origin(part) is Literal:
            words += [repr(word) for word in get_args(part)]
        elif isinstance(part, msgspec.Meta):
            meanings += [part.description] if part.description else []
        else:
            parts += [*get_args(part), *getattr(part, "__metadata__", ())]
    meaning = f" ({meanings[0]})" if meanings else ""
    return (f"; allowed: {', '.join(words)}" if words else "") + meaning


def _key(key: str) -> str:
    """A key as TOML writes it: quoted, and cut, unless it is a plain word; it is printed to a terminal."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key) else _shown(key)


def _shown(value: Any) -> str:
    """A value as TOML writes it, cut, and without characters that a terminal obeys."""
    text = str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(message: str) -> str:
    """msgspec's sentence in lower case, without its own path."""
    if "x00" in message:
        return "control characters, and those that turn the direction of text, are not allowed"
    message = message.split(" - at `$")[0].replace("`object`", "`table`").replace("`", "")
    return message[:1].lower() + message[1:]
