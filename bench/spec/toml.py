"""TOML files as checked values: every fault of a file is listed at once, each with its place and what is allowed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli

from bench.errors import RecipeError

MAX_FILE_BYTES = 64 * 1024  # the largest honest recipe is 4 KB; a bomb is refused before it is parsed
Struct = TypeVar("Struct", bound=msgspec.Struct)

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(name: str, what: str) -> str:
    """`name` if it is a plain file stem, so that no name in a file can point outside its folder."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise RecipeError(
            f"{what} {name!r} is not a name",
            "names are 1 to 64 of a-z 0-9 . _ - and start with a letter or digit; paths are not allowed",
        )
    return name


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables, or a RecipeError that says where it stops being TOML."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: {(error.strerror or str(error)).lower()}", nearest_file_hint(path)) from error
    if len(data) > MAX_FILE_BYTES:
        raise RecipeError(f"{path}: {len(data)} bytes", f"a recipe or track holds at most {MAX_FILE_BYTES} bytes")
    try:
        return tomli.loads(data.decode("utf-8"))
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}", "https://toml.io shows the syntax") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply", "a recipe has tables of at most three levels") from error


def nearest_file_hint(path: Path) -> str:
    """A "did you mean" over the files beside the missing one."""
    beside = sorted(other.name for other in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"{path.parent} holds {', '.join(beside[:8]) or 'no such files'}"


def merge(base: dict[str, Any], override: dict[str, Any], exclusive: frozenset[str] = frozenset()) -> dict[str, Any]:
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
    problems = list(faults(data, kind, ""))
    if problems:
        raise problem_error(source, problems)
    return msgspec.convert(data, kind)


def problem_error(source: str, problems: list[str]) -> RecipeError:
    """The error that lists all problems of one file."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(f"{source}: {count}", "CONTRIBUTING.md lists the fields", problems=tuple(problems))


def faults(data: dict[str, Any], kind: type[msgspec.Struct], path: str) -> list[str]:
    """Every unknown field, wrong type and out-of-range value of a table, in the file's order."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found = [f"{path}{field.encode_name}: missing" for field in fields.values() if _missing(field, data)]
    for key, value in data.items():
        place = f"{path}{key}"
        if key not in fields:
            found.append(f"{place}: no such field{_did_you_mean(key, list(fields))}")
            continue
        nested = fields[key].type
        if isinstance(nested, type) and issubclass(nested, msgspec.Struct) and isinstance(value, dict):
            found += faults(value, nested, f"{place}.")
            continue
        try:
            msgspec.convert(value, nested)
        except msgspec.ValidationError as error:
            found.append(f"{place} = {_shown(value)}: {_plain(str(error))}")
    return found


def _missing(field: Any, data: dict[str, Any]) -> bool:
    return bool(field.required) and field.encode_name not in data


def _did_you_mean(key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(sorted(allowed))}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(message: str) -> str:
    """msgspec's sentence in lower case, without its own path."""
    message = message.split(" - at `$")[0]
    return message[:1].lower() + message[1:]
