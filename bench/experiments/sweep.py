"""The sweep: a TOML file of axes, couplings and constraints, and its recipes. Imports no torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bench.errors import RecipeError
from bench.spec.fields import Line, Name, NonNegative, Positive, Table, Text
from bench.spec.recipe import Recipe
from bench.spec.submission import Submission, decode_recipe, flatten, method_sha256
from bench.spec.toml import check_name, decode, merge, problem_error, read_toml

MAX_CELLS = 200
EXCLUSIVE = frozenset({"horizon"})


class Stop(Table, frozen=True, kw_only=True):
    """[stop]: when a sweep ends before its last cell."""

    seconds: Annotated[Positive, Meta(description="of wall-clock, all cells together")] | None = None
    failures: Annotated[int, Meta(ge=1, le=1000, description="runs that failed twice")] = 3
    drop_diverged: Annotated[bool, Meta(description="no further seed of a cell that diverged")] = True


class NamedCell(Table, frozen=True, kw_only=True):
    """[[cells]]: a cell that no grid makes; `set` holds dotted fields."""

    name: Name
    set: dict[str, Any] = msgspec.field(default_factory=dict)


class Sweep(Table, frozen=True, kw_only=True):
    """One submissions/sweeps/NAME.toml."""

    title: Line
    base: Name
    track: Name
    effect: Annotated[Positive, Meta(description="smallest difference of the metric worth knowing")]
    sigma: Annotated[Positive, Meta(description="standard deviation of the metric from seed to seed")]
    seeds: Annotated[int, Meta(ge=1, le=100, description="runs a cell")]
    notes: Text = ""
    metric: Literal["val_bpb", "core"] = "val_bpb"
    target: Annotated[NonNegative, Meta(description="of the metric, for time to target; 0: none")] = 0.0
    confirm_seeds: Annotated[int, Meta(ge=0, le=100, description="fresh runs of the winner")] = 2
    couplings: Annotated[
        tuple[Literal["batch", "horizon"], ...],
        Meta(
            description="batch: LR and WD follow it by the transfer rules; horizon: WD follows at equal tau"
        ),
    ] = ("batch", "horizon")
    matched: Annotated[
        Literal["none", "flops", "seconds"], Meta(description="what every cell gets as much of as the base")
    ] = "none"
    common: dict[str, Any] = msgspec.field(default_factory=dict)  # dotted fields that every cell sets
    axes: dict[str, list[Any]] = msgspec.field(
        default_factory=dict
    )  # dotted field -> values; all combinations
    cells: tuple[NamedCell, ...] = ()
    stop: Stop = Stop()

    @property
    def better(self) -> Literal["lower", "higher"]:
        """Which way the metric improves."""
        return "lower" if self.metric == "val_bpb" else "higher"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a sweep: a recipe by what it sets over the base."""

    name: str
    settings: dict[str, Any]  # dotted field -> value

    def touches(self, table: str) -> bool:
        """Whether it sets a field of this table."""
        return any(field.split(".")[0] == table for field in self.settings)


def load_sweep(path: Path) -> Sweep:
    """The sweep at `path`, checked.

    Raises:
        RecipeError: every problem of the file at once.
    """
    check_name(path.stem, "sweep")
    sweep = decode(read_toml(path), Sweep, str(path))
    problems = [f"axes.{field}: no values" for field, values in sweep.axes.items() if not values]
    count = len(sweep.cells) + (1 if sweep.axes else 0)
    for values in sweep.axes.values():
        count = count if not values else count * len(values)
    if not sweep.axes and not sweep.cells:
        problems.append("axes, cells: neither is given")
    elif count > MAX_CELLS:
        problems.append(f"axes: {count:,} cells, at most {MAX_CELLS}")
    if problems:
        raise problem_error(str(path), problems)
    return sweep


def cells_of(name: str, sweep: Sweep) -> list[Cell]:
    """The named cells in their order, then the grid's, the last axis fastest.

    Raises:
        RecipeError: two cells have one name.
    """
    found = [Cell(name=f"{name}-{cell.name}", settings=sweep.common | cell.set) for cell in sweep.cells]
    for values in itertools.product(*sweep.axes.values()) if sweep.axes else ():
        label = "-".join(_slug(value) for value in values)
        settings = sweep.common | dict(zip(sweep.axes, values, strict=True))
        found.append(Cell(name=check_name(f"{name}-{label}", "cell"), settings=settings))
    names = [cell.name for cell in found]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise RecipeError(f"{name}: two cells are called {twice[0]}", "name them apart under [[cells]]")
    return found


def _slug(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:g}" if value != int(value) else f"{value:.1f}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.") or "x"


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted fields as tables."""
    tables: dict[str, Any] = {}
    for field, value in settings.items():
        *path, last = field.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tables


def submission_of(base: Recipe, cell: Cell) -> Submission:
    """The cell's recipe, resolved over the base as its file will be."""
    tables = merge(_given(msgspec.to_builtins(base)), nested(cell.settings), EXCLUSIVE)
    recipe = decode_recipe(tables, cell.name)
    return Submission(cell.name, recipe, method_sha256(recipe))


def _given(tables: dict[str, Any]) -> dict[str, Any]:
    """Tables without what is None, which TOML cannot say."""
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in tables.items()
        if value is not None
    }


def cell_text(sweep: Sweep, cell: Cell) -> str:
    """The cell's recipe as TOML: the base's name and what is set over it."""
    head = {"title": f"{cell.name}: a cell of a sweep"[:120], "base": sweep.base, "track": sweep.track}
    lines = [f"{key} = {json.dumps(value)}" for key, value in head.items()]
    lines += [f"{field} = {json.dumps(value)}" for field, value in flatten(nested(cell.settings)).items()]
    return "\n".join([*lines, ""])


def write_cell(folder: Path, sweep: Sweep, cell: Cell) -> Path:
    """Write the cell's recipe file; equal content is left alone."""
    path, text = folder / f"{cell.name}.toml", cell_text(sweep, cell)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path
