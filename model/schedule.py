"""Learning rate, momentum and weight decay at a step: pure functions of (step, steps). Imports no torch."""

from __future__ import annotations

import math

import msgspec


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The three schedules' constants; steps count from 0."""

    warmup_steps: int
    warmup_ratio: float | None = None  # share of all steps, instead of `warmup_steps`
    warmdown_ratio: float  # share of all steps
    warmdown_shape: str  # linear | cosine | sqrt
    final_lr_fraction: float
    momentum_start: float
    momentum_peak: float
    momentum_end: float  # reached at the end of the warmdown
    momentum_warmup_steps: int
    weight_decay_shape: str  # constant | linear | cosine, to zero at the end


class StepScales(msgspec.Struct, frozen=True):
    """What the optimizer needs at one step: multipliers of the base LR and weight decay, and the momentum."""

    learning_rate: float
    momentum: float
    weight_decay: float


def warmdown_progress(step: int, total: float, config: ScheduleConfig) -> float:
    """0 before the warmdown, 1 at the last step; may not be reached when `total` is an estimate."""
    warmdown_steps = round(config.warmdown_ratio * total)
    if warmdown_steps == 0:
        return 0.0
    return min(max((step - (total - warmdown_steps)) / warmdown_steps, 0.0), 1.0)


def learning_rate_scale(step: int, total: float, config: ScheduleConfig) -> float:
    """Linear warm-up, constant, then the warmdown to `final_lr_fraction`."""
    warmup_steps = config.warmup_steps
    if config.warmup_ratio is not None:
        warmup_steps = round(config.warmup_ratio * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    remaining = 1.0 - warmdown_progress(step, total, config)
    if config.warmdown_shape == "cosine":
        remaining = 0.5 * (1.0 - math.cos(math.pi * remaining))
    elif config.warmdown_shape == "sqrt":
        remaining = 1.0 - math.sqrt(1.0 - remaining)
    return remaining + (1.0 - remaining) * config.final_lr_fraction


def momentum(step: int, total: float, config: ScheduleConfig) -> float:
    """Muon's momentum: linear to the peak, then towards `momentum_end` over the warmdown."""
    if step < config.momentum_warmup_steps:
        share = step / config.momentum_warmup_steps
        return (1.0 - share) * config.momentum_start + share * config.momentum_peak
    share = warmdown_progress(step, total, config)
    return (1.0 - share) * config.momentum_peak + share * config.momentum_end


def weight_decay_scale(step: int, total: float, config: ScheduleConfig) -> float:
    """Multiplier of Muon's weight decay over the run."""
    share = min(step / total, 1.0)
    if config.weight_decay_shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    return 1.0 - share if config.weight_decay_shape == "linear" else 1.0


def of_smaller_batch(scales: StepScales, share: float) -> StepScales:
    """Multipliers of a step of this share of the full batch: both go with its root, as from run to run."""
    root = math.sqrt(share)
    return StepScales(scales.learning_rate * root, scales.momentum, scales.weight_decay * root)


def scales_at(step: int, total: float, config: ScheduleConfig) -> StepScales:
    """All three at once. `total` is the number of steps, or its current estimate under a time horizon."""
    return StepScales(
        learning_rate_scale(step, total, config),
        momentum(step, total, config),
        weight_decay_scale(step, total, config),
    )
