"""Commands about recipes: new, check, show, diff, plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.shared import emit, planned
from bench.errors import RecipeError

if TYPE_CHECKING:
    from bench.spec.submission import Submission


def new(options: argparse.Namespace) -> None:
    """`bench new`."""
    from bench.spec.submission import load
    from bench.spec.template import new_recipe
    from bench.spec.toml import check_name

    folder = options.root / "submissions"
    path = folder / f"{check_name(options.name, 'recipe')}.toml"
    base = load(folder / f"{check_name(options.base, 'base')}.toml", folder)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(new_recipe(options.name, base.name, base.recipe))
    except FileExistsError as error:
        raise RecipeError(f"{path} is there already", "choose another name, or edit it") from error
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", "submissions/ must be writable") from error
    print(
        f"wrote {path.relative_to(options.root)}; next: edit it, then make plan SUB=submissions/{path.name}"
    )


def check(options: argparse.Namespace) -> int:
    """`bench check`."""
    from bench.spec.claim import require_claim
    from bench.spec.submission import load, short_name

    failures = []
    submissions = options.root / "submissions"
    for path in options.recipes or sorted(submissions.glob("*.toml"), key=lambda path: path.stem):
        try:
            submission = load(path, submissions)
            require_claim(submission, submissions)
            _require_track(submission, options.root)
        except RecipeError as error:
            failures.append(error)
            continue
        if not options.json:
            print(f"{submission.name}: ok, {short_name(submission.recipe)}")
    if options.json:
        emit([{"message": one.message, "problems": one.problems, "hint": one.hint} for one in failures])
    for failure in failures:
        print("\n".join(failure.lines()), file=sys.stderr)
    return RecipeError.exit_code if failures else 0


def _require_track(submission: Submission, root: Path) -> None:
    from bench.spec.track import load_track

    try:
        load_track(submission.recipe.track, root / "leaderboard" / "tracks")
    except RecipeError as error:
        told = f"{submission.name}: {error.message}"
        raise RecipeError(told, error.hint, problems=error.problems) from None


def show(options: argparse.Namespace) -> None:
    """`bench show`."""
    from bench.spec.submission import flatten, load, method
    from bench.spec.template import toml_value

    submission = load(options.recipe, options.root / "submissions")
    if options.json:
        emit({"name": submission.name, "sha256": submission.sha256, "recipe": submission.recipe})
        return
    print(f"# {submission.name}: {submission.recipe.title}\n# sha256 {submission.sha256}")
    for key, value in flatten(method(submission.recipe)).items():
        if value is not None:
            print(f"{key} = {toml_value(value)}")


def diff(options: argparse.Namespace) -> None:
    """`bench diff`."""
    from bench.spec.submission import differences, load, short_name
    from bench.spec.template import toml_value

    a, b = (load(path, options.root / "submissions") for path in (options.a, options.b))
    changes = differences(a.recipe, b.recipe)
    if options.json:
        emit({"short_name": short_name(b.recipe, a.recipe), "changes": changes})
        return
    print(f"{b.name} = {a.name} with {short_name(b.recipe, a.recipe)}" if changes else "the same method")
    width = max((len(field) for field, _, _ in changes), default=0)
    for field, before, after in changes:
        print(f"  {field:<{width}}  {toml_value(before)} -> {toml_value(after)}")


def plan(options: argparse.Namespace) -> None:
    """`bench plan`; refusals are shown, and are no fault: plans are made for machines that are elsewhere."""
    from bench.spec.plan_table import plan_table

    made = planned(options, own_by_default=True).plan
    if options.world is None:
        emit(made) if options.json else print(plan_table(made))
        return
    from bench.host.planning import links_of
    from bench.spec.parallel import parallel_table, predict

    step = predict(made, options.nodes, links_of(made, options.link, options.network))
    if options.json:
        emit({"plan": made, "parallel": step})
    else:
        print(f"{plan_table(made)}\n{parallel_table(step)}")
