"""A submission file: its chain of bases, resolved; its hash; and what sets it apart from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from bench.errors import RecipeError
from bench.spec.recipe import DESCRIPTIVE, AdamW, Horizon, Recipe
from bench.spec.toml import check_name, decode, faults, merge, problem_error, read_toml

MAX_BASES = 16  # a lever's recipe is the tenth of its chain: it stands on quick and on all of nanochat's runs
# A child's [horizon] replaces its base's: the fields exclude each other.
EXCLUSIVE_TABLES = frozenset({"horizon"})
OWN = (
    "title",
    "notes",
    "links",
    "systems_only",
)  # what a recipe says of itself and a child does not take over


class Submission(msgspec.Struct, frozen=True):
    """A recipe with its name and the canonical hash of what it does."""

    name: str
    recipe: Recipe
    sha256: str


def load(path: Path, folder: Path | None = None) -> Submission:
    """The submission at `path`, bases resolved in `folder` (default: beside it).

    Raises:
        RecipeError: every problem of the file at once; a missing, cyclic or too long chain of bases.
    """
    name = check_name(path.stem, "submission")
    recipe = decode_recipe(_with_bases(path, folder or path.parent, (name,)), str(path))
    return Submission(name, recipe, method_sha256(recipe))


def decode_recipe(data: dict[str, Any], source: str) -> Recipe:
    """The recipe of resolved tables, checked; see `load`.

    A group of AdamW given in part keeps its own defaults for the rest, which differ from group to group.
    """
    defaults = {"optimizer": {"adamw": msgspec.to_builtins(AdamW())}}
    recipe = decode(merge(defaults, data), Recipe, source)
    problems = contradictions(recipe)
    if problems:
        raise problem_error(source, problems)
    return recipe


def _with_bases(path: Path, folder: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    data = read_toml(path)
    base = data.get("base")
    if base is None:
        return data
    if not isinstance(base, str):
        raise problem_error(str(path), faults(data, Recipe, ""))
    check_name(base, "base")
    if base in chain:
        raise RecipeError(f"{path}: bases go in a circle: {' -> '.join((*chain, base))}", "remove one base")
    if len(chain) > MAX_BASES:
        raise RecipeError(
            f"{path}: more than {MAX_BASES} bases: {' -> '.join((*chain, base))}", "flatten the chain"
        )
    under = _with_bases(folder / f"{base}.toml", folder, (*chain, base))
    under = {key: value for key, value in under.items() if key not in OWN}
    return merge(under, data, EXCLUSIVE_TABLES)


def contradictions(recipe: Recipe) -> list[str]:
    """What each field allows alone but not together."""
    problems = []
    given = [field for field in Horizon.__struct_fields__ if getattr(recipe.horizon, field) is not None]
    if len(given) != 1:
        what = "none is" if not given else f"{' and '.join(given)} are"
        problems.append(
            f"horizon: exactly one of {', '.join(Horizon.__struct_fields__)} must be given, {what}"
        )
    model = recipe.model
    width = -(-model.depth * model.aspect_ratio // model.head_dim) * model.head_dim
    heads = width // model.head_dim
    if heads % model.kv_group:
        problems.append(f"model.kv_group = {model.kv_group}: does not divide the {heads} heads")
    if recipe.schedule.batch_warmup.tokens and recipe.schedule.batch_warmup.ratio:
        problems.append("schedule.batch_warmup: tokens and ratio are given, one of them must be")
    if model.latent_attention.kv_rank:
        problems += _without_latents(recipe)
    problems += _without_masters(recipe)
    if model.value_residual and model.depth == 1:
        problems.append("model.value_residual: one layer has no later one")
    for field in ("ve_gate_channels", "smear_channels", "attention_gate_channels"):
        if getattr(model, field) > width:
            problems.append(f"model.{field} = {getattr(model, field)}: more than the width, {width}")
    return problems


def _without_masters(recipe: Recipe) -> list[str]:
    """Why the embeddings may not be kept in bfloat16."""
    precision, what = recipe.precision, "precision.embeddings = bfloat16 with"
    if precision.embeddings == "float32":
        return []
    problems = []
    if precision.compute != "bfloat16":
        asked = f"compute = {precision.compute}"
        problems.append(f"{what} {asked}: set embeddings to float32, or compute to bfloat16")
    if recipe.model.tied_embeddings:
        problems.append(
            f"{what} model.tied_embeddings: the table is the head, too, whose masters are float32"
        )
    return problems


def _without_latents(recipe: Recipe) -> list[str]:
    """What means nothing, or is not stated, where keys come from a latent."""
    model, rope_dim = recipe.model, recipe.model.latent_attention.rope_dim
    reasons = {
        f"kv_group = {model.kv_group}: every head has keys of its own": model.kv_group > 1,
        "positions = none: the rotated channels would be alike at every position": model.positions == "none",
        f"qk_clip = {recipe.optimizer.muon.qk_clip}: no matrix makes a head's keys alone": (
            recipe.optimizer.muon.qk_clip != "off"
        ),
        f"rope_dim = {rope_dim}: a head has {model.head_dim} channels, some of the latent's among them": (
            rope_dim >= model.head_dim
        ),
    }
    return [f"model.latent_attention with {reason}" for reason, holds in reasons.items() if holds]


def canonical(value: Any) -> bytes:
    """The one byte string of a value: JSON with sorted keys."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="deterministic")


def sha256(value: Any) -> str:
    """Hash of the canonical bytes."""
    return hashlib.sha256(canonical(value)).hexdigest()


def method(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its descriptive fields."""
    return {key: value for key, value in msgspec.to_builtins(recipe).items() if key not in DESCRIPTIVE}


def method_sha256(recipe: Recipe) -> str:
    """Hash of what the recipe does; its title and notes do not change it.

    Fields at their defaults are left out: a field that comes to be, off by default, makes no older record's
    recipe another one.
    """
    return sha256({field: value for field, _, value in differences(Recipe(), recipe)})


def flatten(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted field -> value."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(field, value in a, value in b) of every field of the method that differs, in the schema's order."""
    flat_a, flat_b = flatten(method(a)), flatten(method(b))
    fields = [*flat_a, *(field for field in flat_b if field not in flat_a)]
    return [(f, x, y) for f in fields if (x := flat_a.get(f)) != (y := flat_b.get(f))]


def short_name(recipe: Recipe, base: Recipe | None = None) -> str:
    """What sets the recipe apart from `base` (or the defaults): `d22+warmdown 0.85+ratio 12+batch 1M`."""
    base = base or Recipe()
    parts = [f"d{recipe.model.depth}"] if base.model.depth != recipe.model.depth else []
    changed = {field: after for field, _, after in differences(base, recipe) if after is not None}
    named = [field for field in LABELS if field in changed]
    others = [field for field in changed if field not in LABELS and field not in UNNAMED]
    parts += [_label(LABELS.get(field, field), changed[field]) for field in (*named, *others)]
    if len(parts) > MAX_PARTS:
        parts = [*parts[: MAX_PARTS - 1], f"{len(parts) - MAX_PARTS + 1} more"]
    return "+".join(parts) or f"d{recipe.model.depth}"


def _label(label: str, value: Any) -> str:
    if isinstance(value, bool):
        return label if value else f"no {label}"
    if isinstance(value, int):
        value = _counted(value)
    return f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}".strip()


def _counted(number: int) -> str:
    """`1M` for 2^20, `768K` for 768 x 2^10, else with thousands separators."""
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if number and number % unit == 0:
            return f"{number // unit:,}{letter}"
    return f"{number:,}"


MAX_PARTS = 7
# Fields that do not change what is learnt, or that a name says first.
UNNAMED = (
    "model.depth",
    "batch.device_sequences",
    "eval.every_steps",
    "eval.validation_bytes",
    "log.every_steps",
    "checkpoint.every_steps",
)
# How fields appear in a short name, in this order; any other field follows under its own name.
LABELS = {
    "model.aspect_ratio": "aspect",
    "model.head_dim": "head",
    "model.kv_group": "GQA",
    "model.window_pattern": "window",
    "model.positions": "positions",
    "model.qk_norm": "QK norm",
    "model.attention_gate_channels": "attention gate",
    "model.tied_embeddings": "tied embeddings",
    "model.value_embeddings": "value embeddings",
    "model.latent_attention.kv_rank": "latent",
    "model.latent_attention.q_rank": "latent queries",
    "model.latent_attention.rope_dim": "latent rotated",
    "model.value_residual": "value residual",
    "model.bigram.factor": "bigram",
    "model.bigram.num_hashes": "bigram hashes",
    "model.smear": "smear",
    "model.backout": "backout",
    "model.softcap": "softcap",
    "optimizer.muon.lr": "Muon LR",
    "optimizer.muon.equilibrate": "MuonEq",
    "optimizer.muon.renormalise": "Muon+",
    "optimizer.muon.qk_clip": "MuonClip",
    "optimizer.muon.normuon_beta2": "NorMuon",
    "optimizer.muon.weight_decay": "WD",
    "optimizer.muon.momentum_warmup_steps": "momentum warmup",
    "schedule.warmup_steps": "warmup",
    "schedule.warmdown_ratio": "warmdown",
    "schedule.warmdown_shape": "warmdown",
    "schedule.final_lr_fraction": "final LR",
    "schedule.batch_warmup.ratio": "batch warm-up",
    "schedule.batch_warmup.tokens": "batch warm-up tokens",
    "schedule.batch_warmup.start": "batch warm-up from",
    "horizon.param_data_ratio": "ratio",
    "horizon.iterations": "steps",
    "horizon.tokens": "tokens",
    "horizon.flops": "FLOPs",
    "horizon.seconds": "seconds",
    "batch.tokens": "batch",
    "loss.z_loss": "z-loss",
    "precision.compute": "",
    "precision.embeddings": "embeddings",
    "precision.initial_loss_scale": "loss scale from",
    "precision.loss_scale_growth_steps": "loss scale doubles after",
    "precision.fp8": "fp8",
    "compile.enabled": "compile",
    "compile.manual_gc_every_steps": "garbage every",
    "model.sequence_length": "sequence",
    "model.vocab_size": "vocab",
    "data.dataset": "",
}
