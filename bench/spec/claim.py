"""The claim `systems_only = "BASE"`: the recipe computes what BASE computes, and only the machine differs.

It is decided from the fields. How a matrix is multiplied, in which launches and after which compilation, is
the machine's; its dtype, its scaling and everything that is learnt is the method's.
"""

from __future__ import annotations

from pathlib import Path

from bench.errors import RecipeError
from bench.spec.recipe import Recipe
from bench.spec.submission import Submission, differences, load

SYSTEMS_TABLES = ("kernels.", "compile.")
SYSTEMS_FIELDS = frozenset(
    {
        "batch.device_sequences",
        "precision.deterministic",
        "eval.every_steps",
        "log.every_steps",
        "checkpoint.every_steps",
    }
)


def beyond_systems(base: Recipe, recipe: Recipe) -> list[str]:
    """The fields that differ and are not the machine's; empty where the claim may hold."""
    changed = [field for field, _, _ in differences(base, recipe) if not field.startswith(SYSTEMS_TABLES)]
    # A batch that warms up grows by whole micro-batches: there their size decides what a step learns from.
    warm_up = recipe.schedule.batch_warmup
    machine = SYSTEMS_FIELDS - ({"batch.device_sequences"} if warm_up.tokens or warm_up.ratio else set())
    return [field for field in changed if field not in machine]


def require_claim(submission: Submission, folder: Path) -> None:
    """Raise RecipeError where a recipe says it is systems-only against one that it differs from otherwise."""
    claimed = submission.recipe.systems_only
    if claimed is None:
        return
    beyond = beyond_systems(load(folder / f"{claimed}.toml", folder).recipe, submission.recipe)
    if beyond:
        raise RecipeError(
            f"{submission.name}: systems_only = {claimed!r}, but it differs in {', '.join(beyond)}",
            "RULES.md 11 lists the fields that may; leave the claim out, or the change",
        )
