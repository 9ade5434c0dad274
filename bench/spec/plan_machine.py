"""The machine that a plan is made for, and what of a run it refuses. Imports no torch."""

from __future__ import annotations

import msgspec

from bench.errors import PlanRefused
from bench.spec.kernel_choices import kernel_choices, kernel_refusals
from bench.spec.memory import MemoryEstimate
from bench.spec.recipe import Recipe
from bench.spec.track import NamedTrack
from model.config import ModelConfig

MAX_TOKENS = 10**15  # a million times nanochat's speedruns; counts of tokens and bytes below it fit 64 bits
MAX_BYTES = 2**60


class PlanMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan needs to know of a machine; measured or declared by bench.host."""

    device_kind: str
    device_name: str
    device_count: int
    machine_class: str
    device_memory_bytes: int
    flops_per_s: float | None  # sustained training rate of all devices
    rate_source: str
    compile_refusal: str = ""  # why this device trains eagerly; "" where it compiles


def refuse_the_impossible(target: int, memory: MemoryEstimate) -> None:
    """Raise for sizes that no machine has: their plan could not even be written down."""
    if target > MAX_TOKENS:
        raise PlanRefused(f"horizon: {target:.3g} tokens, at most {MAX_TOKENS:.3g}", "shorten the horizon")
    if memory.total_bytes > MAX_BYTES:
        raise PlanRefused(
            f"needs {memory.total_bytes:.3g} bytes, no device has", "lower model.depth or the batch"
        )


def refusals_of(
    recipe: Recipe,
    config: ModelConfig,
    iterations: int,
    memory: MemoryEstimate,
    machine: PlanMachine,
    track: NamedTrack,
    world_size: int,
) -> list[str]:
    """Why this machine may not run the plan, each in words."""
    refusals = []
    count, needed = track.track.hardware.device_count, track.track.hardware.machine_class
    if world_size != count:
        refusals.append(f"track {track.name} takes {count} device(s), this plan is for {world_size}")
    if machine.machine_class != needed:
        refusals.append(
            f"track {track.name} is for a machine of class {needed}, this is {machine.machine_class}"
        )
    choices = kernel_choices(recipe, config, machine.device_kind)
    refusals += kernel_refusals(recipe, choices, machine.device_kind)
    if iterations < 1 and recipe.horizon.seconds is None:  # a clock decides by itself how many steps fit
        refusals.append("the horizon is shorter than one step; lengthen it or lower batch.tokens")
    if memory.total_bytes > machine.device_memory_bytes:
        refusals.append(
            f"needs {memory.total_bytes / 2**30:.1f} GiB, {machine.device_name} has "
            f"{machine.device_memory_bytes / 2**30:.1f} GiB; lower batch.device_sequences"
        )
    return refusals
