"""What a look at this machine trains: a recipe at its own scale, under no track, on the built-in text."""

from __future__ import annotations

import msgspec

from bench.data.prepared import Prepared
from bench.data.text import prepared_text
from bench.host.facts import MachineFacts
from bench.host.planning import Rates, plan_machine
from bench.spec.plan import Plan, make_plan
from bench.spec.recipe import Recipe
from bench.spec.submission import Submission
from bench.spec.track import load_tracks
from bench.spec.workspace import Workspace

VALIDATION_BYTES = 100_000
TOKENIZER_CHARS = 20_000_000


def unscaled_plan(
    space: Workspace, facts: MachineFacts, recipe: Recipe, world_size: int | None = None
) -> Plan:
    """The plan of exactly this recipe on this machine; a track only lends the schema a name."""
    smallest = load_tracks(space.tracks)[0]
    unscaled = msgspec.structs.replace(smallest, track=msgspec.structs.replace(smallest.track, scale={}))
    machine = plan_machine(facts, unscaled, recipe.precision.compute, recipe.model.depth, Rates())
    return make_plan(Submission("unscaled", recipe, ""), unscaled, machine, world_size)


def stdlib_tokens(space: Workspace, vocab_size: int, tokenizer_chars: int = TOKENIZER_CHARS) -> Prepared:
    """Tokens of Python's own library, made once and kept."""
    return prepared_text(
        "stdlib",
        vocab_size,
        space.data,
        validation_bytes=VALIDATION_BYTES,
        tokenizer_chars=tokenizer_chars,
    )[1]
