"""How many micro-batches each step has: all the same, or growing over the first part of the run."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from bench.spec.recipe import BatchWarmup, Recipe

# Sizes that a step can have: a plan writes each down.
MAX_MICROS = 2**16


class Stage(msgspec.Struct, frozen=True):
    """Steps of one size, on each rank."""

    first_step: int
    first_micro: int  # micro-batches before it
    micros: int  # micro-batches a step


class BatchRamp(msgspec.Struct, frozen=True, kw_only=True):
    """A run's steps; the last stage has no end."""

    stages: tuple[Stage, ...]

    def micros(self, step: int) -> int:
        """Micro-batches of a step."""
        return self._stage(step).micros

    def micro_index(self, step: int) -> int:
        """Micro-batches before a step."""
        stage = self._stage(step)
        return stage.first_micro + (step - stage.first_step) * stage.micros

    @property
    def growing_steps(self) -> int:
        """Steps before the batch is whole."""
        return self.stages[-1].first_step

    def _stage(self, step: int) -> Stage:
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage.first_step) - 1]


def constant(micros: int) -> BatchRamp:
    """Every step alike."""
    return BatchRamp(stages=(Stage(0, 0, micros),))


def growing(total: int, full: int, start: float, over: int) -> tuple[BatchRamp, int]:
    """Steps that grow from `start` of the full batch to all of it, and their number.

    After n micro-batches a step has first + (full - first) n / over of them, rounded down: the batch grows
    evenly with the tokens seen. Exactly `total` are used: what full steps leave over is a step of its own
    among those of its size, so that a run sees as much text as one without a warm-up.

    Args:
        total: micro-batches of the run on each rank; `full`: of a full step; `over`: of the warm-up.
    """
    first, used = min(max(round(start * full), 1), full), 0
    steps = dict.fromkeys(range(1, full + 1), 0)
    for micros in range(first, full):
        end = min(-(-(micros - first + 1) * over // (full - first)), total)
        steps[micros] = min(max(-(-(end - used) // micros), 0), (total - used) // micros)
        used += steps[micros] * micros
    steps[full], rest = divmod(total - used, full)
    if rest:
        steps[rest] += 1
    stages, step, micro = [], 0, 0
    for micros, count in steps.items():
        if count or micros == full:
            stages.append(Stage(step, micro, micros))
        step, micro = step + count, micro + count * micros
    return BatchRamp(stages=tuple(stages)), step


def batch_ramp(warmup: BatchWarmup, batches: int, full: int, micro_tokens: int) -> tuple[BatchRamp, int]:
    """A recipe's steps and their number, for a horizon of so many full batches.

    Args:
        full: micro-batches of a full step on each rank.
        micro_tokens: tokens of one on all ranks together.
    """
    if not is_on(warmup):
        return constant(full), batches
    over = warmup.tokens / micro_tokens if warmup.tokens else warmup.ratio * batches * full
    return growing(batches * full, full, warmup.start, max(round(over), 1))


def is_on(warmup: BatchWarmup) -> bool:
    """Whether the batch grows at all."""
    return bool(warmup.tokens or warmup.ratio)


def planned_steps(
    recipe: Recipe, batches: int, full: int, micro_tokens: int
) -> tuple[BatchRamp, int, list[str]]:
    """The steps of a plan, their number, and why its batch cannot grow as asked; see `batch_ramp`."""
    warmup = recipe.schedule.batch_warmup
    refusals = _refusals(recipe, batches * full * micro_tokens, full) if is_on(warmup) else []
    return *batch_ramp(BatchWarmup() if refusals else warmup, batches, full, micro_tokens), refusals


def _refusals(recipe: Recipe, tokens: int, micros: int) -> list[str]:
    warmup, what = recipe.schedule.batch_warmup, "schedule.batch_warmup"
    if recipe.horizon.seconds is not None:
        return [f"{what}: a horizon in seconds counts its steps by their mean time, which would grow"]
    if not 1 < micros <= MAX_MICROS:
        return [
            f"{what}: a step is {micros:,} micro-batches, 2 to {MAX_MICROS:,} can grow; "
            "set batch.device_sequences"
        ]
    if warmup.tokens > tokens:
        return [f"{what}.tokens = {warmup.tokens:,}: more than the {tokens:,} of the run"]
    return []
