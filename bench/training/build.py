"""A plan's model, optimizer and batches on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from bench.data.loader import Loader
from bench.data.prepared import Prepared
from bench.host.device import Device
from bench.host.half_products import without_units
from bench.spec.batch_ramp import is_on
from bench.spec.plan import Plan
from bench.spec.recipe import AdamW
from bench.training.loop import LoopConfig, Trainer
from bench.training.ranks import ALONE, Ranks
from bench.training.segments import segments
from kernels.choices import Choice
from kernels.compiling import compiled_whole
from kernels.dispatch import bind
from model.gpt import GPT
from model.initial import build
from model.optimizers.combined import MuonAdamW
from model.optimizers.groups import AdamWConstants, MuonConstants, param_groups
from model.optimizers.loss_scaler import LossScaler
from model.optimizers.qk_clip import QKClip


def seed_stream(seed: int, name: str) -> int:
    """A seed of its own for each use of a run's seed, so that one more draw here moves nothing there."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def build_trainer(
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    process_group: dist.ProcessGroup | None = None,
) -> Trainer:
    """Model, compiled trunk and optimizer, initialised from the run's seed."""
    choices = tuple(Choice(**choice) for choice in plan.kernels)
    kernels = bind(choices, compiled=plan.compiled)
    model = build(plan.model, dtype, kernels, device, seed_stream(seed, "init"))
    groups = param_groups(model, _adamw_constants(plan), _muon_constants(plan))
    optimizer = MuonAdamW(groups, polar_dtype(dtype, device), kernels, process_group)
    trunk = _compiled(model, plan.recipe.compile.mode) if plan.compiled else model
    muon = plan.recipe.optimizer.muon
    clip = None if muon.qk_clip == "off" else QKClip(model, muon.qk_clip, muon.qk_clip_tau, process_group)
    scaler, precision = None, plan.recipe.precision
    if dtype == torch.float16:
        grown = precision.initial_loss_scale, precision.loss_scale_growth_steps
        scaler = LossScaler(model.parameters(), *grown, process_group)
    return Trainer(model, trunk, optimizer, clip, plan.recipe.loss.z_loss, scaler)


def polar_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What the polar iteration runs in, by the compute dtype.

    bf16 is three times as fast on matrix units as float32, and as good. A processor without such units takes
    its products in float32 in any case; there the iteration goes without the casts, and long matrices take
    the Gram form: Muon's part of a step of quick 143 ms (124-157) instead of 220 (190-233; AVX2, in turn).

    Directions are cast before they are normalised: where theirs are of 1e-4, as gradients are, float16's
    numbers run out, and what comes out is 1.3 of its own norm away from float64's (bf16 0.22, float32 0.000;
    12 matrices of 64 x 64 to 384 x 1536, condition numbers 2 to 1e6). Directions near 1 it takes better than
    bf16, 0.03 against 0.24; nothing overflows. nanochat leaves bf16 for float32, too (optim.py).
    """
    is_emulated = device.type == "cpu" and dtype in without_units()
    return torch.float32 if dtype == torch.float16 or is_emulated else dtype


def _compiled(model: GPT, mode: str) -> Callable[[Tensor], Tensor]:
    """The model compiled, its traced forward and backward kept in the cache too.

    torch keeps no graph with a custom autograd function by default, since it cannot see into one that is not
    traced; ours are traced whole (`fullgraph`). A warm start then took 9.3-9.9 s instead of 18.5-21.0 s.
    """
    from torch._functorch import config as functorch_config  # making folders as it is loaded

    if hasattr(functorch_config, "autograd_cache_allow_custom_autograd_functions"):
        functorch_config.autograd_cache_allow_custom_autograd_functions = True
    return compiled_whole(model, dynamic=False, mode=mode)


def loop_config(plan: Plan) -> LoopConfig:
    """What the loop needs of the plan."""
    recipe = plan.recipe
    return LoopConfig(
        accumulation=plan.accumulation,
        schedule=plan.schedule,
        log_every_steps=recipe.log.every_steps,
        eval_every_steps=recipe.eval.every_steps,
        checkpoint_every_steps=recipe.checkpoint.every_steps,
        state_steps=frozenset(step for segment in segments(plan.iterations) for step in segment),
        collect_every_steps=recipe.compile.manual_gc_every_steps,
        ramp=plan.batch_ramp if is_on(recipe.schedule.batch_warmup) else None,
    )


def steps_only(plan: Plan) -> LoopConfig:
    """`loop_config`, but every event is one optimizer step: nothing is evaluated, kept or hashed."""
    return loop_config(plan)._replace(
        log_every_steps=1, eval_every_steps=0, checkpoint_every_steps=0, state_steps=frozenset()
    )


def open_loader(plan: Plan, prepared: Prepared, seed: int, device: Device, ranks: Ranks = ALONE) -> Loader:
    """This rank's batches of a run, in the order that its seed gives."""
    return Loader(
        prepared,
        plan.model.sequence_length,
        plan.device_sequences,
        plan.batch_ramp,
        rank=ranks.rank,
        world_size=ranks.size,
        seed=seed_stream(seed, "data"),
        device_pin=device.is_pinned_memory_allowed,
    )


def _adamw_constants(plan: Plan) -> dict[str, AdamWConstants]:
    groups = {}
    for name in AdamW.__struct_fields__:
        group = getattr(plan.recipe.optimizer.adamw, name)
        groups[name] = AdamWConstants(
            lr=plan.rates.adamw_lr[name],
            betas=(group.beta1, group.beta2),
            eps=group.eps,
            weight_decay=group.weight_decay,
        )
    return groups


def _muon_constants(plan: Plan) -> MuonConstants:
    muon = plan.recipe.optimizer.muon
    return MuonConstants(
        lr=plan.matrix_lr,
        weight_decay=plan.weight_decay,
        beta2=muon.normuon_beta2,
        polar_steps=muon.polar_steps,
        polar_norm_scale=muon.polar_norm_scale,
        equilibrate=muon.equilibrate,
        renormalise=muon.renormalise,
    )
