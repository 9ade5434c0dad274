"""The plan: all a run derives from recipe x track x machine, in one pure function. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from bench.spec.batch_ramp import BatchRamp, is_on, planned_steps
from bench.spec.kernel_choices import kernel_choices
from bench.spec.memory import MemoryEstimate, estimate_memory, fitting_sequences
from bench.spec.plan_machine import PlanMachine, refusals_of, refuse_the_impossible
from bench.spec.recipe import Recipe, Schedule
from bench.spec.scaling import REFERENCE_DEPTH, Rates, batch_tokens, scaled_rates, tau
from bench.spec.submission import Submission, method_sha256, sha256
from bench.spec.track import NamedTrack, horizon_kind, horizon_tokens, on_track, scale_fields
from model.config import (
    InitConfig,
    LatentAttention,
    ModelConfig,
    padded_vocab,
    value_embedding_layers,
    window_sizes,
)
from model.flops import flops_per_token, parameters, scaling_parameters
from model.schedule import ScheduleConfig

# The tokenizer's special tokens are the last of its ids, the start of a document first among them.
NUM_SPECIAL_TOKENS = 9


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run, derived; the JSON of `bench plan --json`."""

    recipe_name: str
    track_name: str
    track_fields: list[str]  # recipe fields that the track set
    recipe: Recipe
    machine: PlanMachine
    model: ModelConfig
    schedule: ScheduleConfig
    width: int
    heads: int
    layers: int
    vocab_padded: int
    parameters: dict[str, int]
    parameters_total: int
    scaling_parameters: int
    horizon: str
    target_tokens: int
    iterations: int  # an estimate under a horizon in seconds
    batch_tokens: int
    tokens: int
    param_data_ratio: float
    flops_per_token: int
    total_flops: float
    matrix_lr: float
    weight_decay: float
    tau: float
    rates: Rates
    device_sequences: int
    accumulation: int  # micro-batches of a full step
    batch_ramp: BatchRamp
    world_size: int
    compiled: bool
    memory: MemoryEstimate
    predicted_peak_bytes: int
    predicted_seconds: float | None
    predicted_dollars: float | None
    kernels: list[dict[str, str]]
    refusals: list[str]

    @property
    def sha256(self) -> str:
        """Hash of what follows from recipe and track; not of what the machine fits into given seconds.

        Nor of levers that are off: one that comes to be makes no older run another, to resume or to replay.
        """
        derived: dict[str, Any] = {
            "recipe": method_sha256(self.recipe),
            "parameters": {group: count for group, count in self.parameters.items() if count},
            "flops_per_token": self.flops_per_token,
            "matrix_lr": self.matrix_lr,
            "weight_decay": self.weight_decay,
            "batch_tokens": self.batch_tokens,
            "iterations": 0 if self.horizon == "seconds" else self.iterations,
        }
        if is_on(self.recipe.schedule.batch_warmup):  # only then do the results depend on the micro-batches
            derived |= {"ramp": self.batch_ramp, "micro": self.batch_tokens // self.accumulation}
        return sha256(derived)

    def tokens_before(self, step: int) -> int:
        """Tokens that the steps before this one train on."""
        return self.batch_ramp.micro_index(step) * (self.batch_tokens // self.accumulation)

    def tokens_of(self, step: int) -> int:
        """Tokens of one step."""
        return self.tokens_before(step + 1) - self.tokens_before(step)

    def sequences_after(self, step: int) -> int:
        """Training sequences that the first `step` steps take."""
        return self.tokens_before(step) // self.model.sequence_length


def model_config(recipe: Recipe, depth: int | None = None) -> ModelConfig:
    """The model's shape; `depth` asks for the same recipe at another depth."""
    model = recipe.model
    depth = depth or model.depth
    heads = max(-(-depth * model.aspect_ratio // model.head_dim), 1)
    short = model.sequence_length / model.short_window_divisor / model.short_window_multiple
    init = {field: getattr(model, field) for field in InitConfig.__struct_fields__ if hasattr(model, field)}
    return ModelConfig(
        depth=depth,
        width=heads * model.head_dim,
        num_heads=heads,
        num_kv_heads=max(heads // model.kv_group, 1),
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        vocab_padded=padded_vocab(model.vocab_size),
        sequence_length=model.sequence_length,
        window_sizes=window_sizes(
            model.window_pattern, depth, model.sequence_length, math.ceil(short) * model.short_window_multiple
        ),
        rope_base=model.rope_base,
        qk_scale=model.qk_scale,
        softcap=model.softcap,
        value_embedding_layers=value_embedding_layers(model.value_embeddings, depth),
        ve_gate_channels=model.ve_gate_channels,
        ve_gate_range=model.ve_gate_range,
        smear_channels=model.smear_channels if model.smear else 0,
        backout_layer=depth // 2 if model.backout else -1,
        init=InitConfig(
            **init,
            ve_gate_max=model.ve_gate_init,
            smear_gate_max=model.smear_gate_init,
            bigram_lambda=model.bigram.lambda_init,
        ),
        rotary=model.positions == "rotary",
        qk_norm=model.qk_norm,
        attention_gate_channels=model.attention_gate_channels,
        tied_embeddings=model.tied_embeddings,
        latent=_latent(recipe) if model.latent_attention.kv_rank else None,
        value_residual=model.value_residual,
        bigram_rows=model.bigram.factor * model.vocab_size,
        bigram_hashes=model.bigram.num_hashes,
        bigram_masked_token=model.vocab_size - NUM_SPECIAL_TOKENS if model.bigram.mask_bos else -1,
        embeddings=recipe.precision.embeddings,
        fp8=recipe.precision.fp8,
        fp8_min_dim=recipe.precision.fp8_min_dim,
        observes_logits=recipe.optimizer.muon.qk_clip == "logit",
    )


def _latent(recipe: Recipe) -> LatentAttention:
    asked = recipe.model.latent_attention
    return LatentAttention(kv_rank=asked.kv_rank, q_rank=asked.q_rank, rope_dim=asked.rope_dim)


def schedule_config(recipe: Recipe) -> ScheduleConfig:
    """The schedules' constants."""
    muon, fields = recipe.optimizer.muon, ScheduleConfig.__struct_fields__
    return ScheduleConfig(
        **{field: getattr(recipe.schedule, field) for field in Schedule.__struct_fields__ if field in fields},
        momentum_start=muon.momentum_start,
        momentum_peak=muon.momentum_peak,
        momentum_end=muon.momentum_end,
        momentum_warmup_steps=muon.momentum_warmup_steps,
        weight_decay_shape=muon.weight_decay_shape,
    )


def target_tokens(recipe: Recipe, config: ModelConfig, batch: int, machine: PlanMachine) -> int:
    """Tokens the horizon asks for, before whole steps. Under seconds: an estimate from the machine's rate."""
    tokens = horizon_tokens(recipe.horizon, scaling_parameters(config), flops_per_token(config), batch)
    if tokens is not None:
        return tokens
    return int((recipe.horizon.seconds or 0.0) * (machine.flops_per_s or 0.0) / flops_per_token(config))


def make_plan(
    submission: Submission, track: NamedTrack, machine: PlanMachine, world_size: int | None = None
) -> Plan:
    """Everything a run derives. Refusals are listed, not raised: the numbers are worth reading all the same.

    `world_size` plans for another number of devices than the track's, on which nothing can be run.

    Raises:
        PlanRefused: sizes that no machine has.
    """
    recipe = on_track(submission.recipe, track.track, f"{submission.name} on {track.name}")
    config = model_config(recipe)
    scaling, world = scaling_parameters(config), world_size or track.track.hardware.device_count
    # D/D_d12 at one ratio is the ratio of the scaling parameters, whatever the horizon is given in.
    horizon_ratio = scaling / scaling_parameters(model_config(recipe, REFERENCE_DEPTH))
    batch = batch_tokens(recipe, horizon_ratio)
    target = target_tokens(recipe, config, batch, machine)
    sequences, accumulation, refusals = _rows_at_once(recipe, config, batch, world, machine)
    memory = estimate_memory(config, recipe.precision.compute, sequences, machine.device_kind, world)
    refuse_the_impossible(target, memory)
    num_batches = target // batch
    ramp, iterations, why_not = planned_steps(recipe, num_batches, accumulation, batch // accumulation)
    refusals += why_not + refusals_of(recipe, config, iterations, memory, machine, track, world)
    total_flops = float(flops_per_token(config) * (tokens := num_batches * batch))
    return Plan(
        recipe_name=submission.name,
        track_name=track.name,
        track_fields=scale_fields(track.track),
        recipe=recipe,
        machine=machine,
        model=config,
        schedule=schedule_config(recipe),
        **_shape_fields(config),
        horizon=horizon_kind(recipe.horizon),
        target_tokens=target,
        iterations=iterations,
        batch_tokens=batch,
        tokens=tokens,
        param_data_ratio=tokens / scaling,
        total_flops=total_flops,
        **_rate_fields(scaled_rates(recipe, config.width, batch, horizon_ratio), batch, tokens),
        device_sequences=sequences,
        accumulation=accumulation,
        batch_ramp=ramp,
        world_size=world,
        compiled=recipe.compile.enabled and not machine.compile_refusal,
        **_cost_fields(recipe, total_flops, memory, machine, track),
        kernels=[choice._asdict() for choice in kernel_choices(recipe, config, machine.device_kind)],
        refusals=refusals,
    )


def _shape_fields(config: ModelConfig) -> dict[str, Any]:
    groups = parameters(config)
    return {
        "width": config.width,
        "heads": config.num_heads,
        "layers": config.depth,
        "vocab_padded": config.vocab_padded,
        "parameters": groups,
        "parameters_total": sum(groups.values()),
        "scaling_parameters": scaling_parameters(config),
        "flops_per_token": flops_per_token(config),
    }


def _rate_fields(rates: Rates, batch: int, tokens: int) -> dict[str, Any]:
    return {
        "matrix_lr": rates.matrix_lr,
        "weight_decay": rates.weight_decay,
        "tau": tau(batch, rates, tokens),
        "rates": rates,
    }


def _rows_at_once(
    recipe: Recipe, config: ModelConfig, batch: int, world: int, machine: PlanMachine
) -> tuple[int, int, list[str]]:
    """(rows a device takes at once, accumulation steps, refusals)."""
    rows, rest = divmod(batch, config.sequence_length)
    if rest or rows % world or not rows:
        where = f"on each of {world} device(s)"
        what = f"batch of {batch:,} tokens is not whole rows of {config.sequence_length:,} {where}"
        return 1, 1, [f"{what}; set batch.tokens to a multiple of {config.sequence_length * world:,}"]
    rows //= world
    asked = recipe.batch.device_sequences
    if asked == "auto":
        asked = fitting_sequences(config, recipe.precision.compute, rows, machine, world)
    if rows % asked:
        return (
            asked,
            1,
            [f"batch.device_sequences = {asked} does not divide the {rows} rows of a step on a device"],
        )
    return asked, rows // asked, []


def _cost_fields(
    recipe: Recipe, total_flops: float, memory: MemoryEstimate, machine: PlanMachine, track: NamedTrack
) -> dict[str, Any]:
    seconds = _predicted_seconds(recipe, total_flops, machine)
    return {
        "memory": memory,
        "predicted_peak_bytes": memory.total_bytes,
        "predicted_seconds": seconds,
        "predicted_dollars": _dollars(seconds, track),
    }


def _predicted_seconds(recipe: Recipe, total_flops: float, machine: PlanMachine) -> float | None:
    if recipe.horizon.seconds is not None:
        return recipe.horizon.seconds
    return total_flops / machine.flops_per_s if machine.flops_per_s else None


def _dollars(seconds: float | None, track: NamedTrack) -> float | None:
    hardware = track.track.hardware
    if seconds is None or not hardware.dollars_per_device_hour:
        return None
    return seconds / 3600 * hardware.device_count * hardware.dollars_per_device_hour
