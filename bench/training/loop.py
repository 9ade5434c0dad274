"""The training loop as a generator of events: it never prints, times or scores itself."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data.loader import Batch, Cursor
from bench.spec.batch_ramp import BatchRamp
from bench.training.ranks import ALONE
from model.gpt import GPT
from model.optimizers.combined import MuonAdamW
from model.optimizers.loss_scaler import LossScaler
from model.optimizers.qk_clip import QKClip
from model.schedule import ScheduleConfig, StepScales, of_smaller_batch, scales_at


class StepsDone(NamedTuple):
    """Finite `losses` and `scales` of the last steps, up to `step` (1 is the first), read back in one go."""

    step: int
    losses: list[float]
    scales: list[StepScales]
    totals: list[float]  # of the run's steps, as assumed by the schedules


class EvalDue(NamedTuple):
    """The run stands between steps; evaluate now."""

    step: int


class StateDue(NamedTuple):
    """The run stands between steps, at one where a replay starts or stops; note its state now."""

    step: int


class CheckpointDue(NamedTuple):
    """The run stands between steps; save now."""

    step: int


NOT_FINITE = "its loss or its weights are not finite"
SCALE_EXHAUSTED = "its gradients overflow float16 whatever the loss is multiplied by"


class Diverged(NamedTuple):
    """The run cannot go on after `step`; the generator ends here. `reason` completes "at that step ..."."""

    step: int
    reason: str = NOT_FINITE


Event = StepsDone | EvalDue | StateDue | CheckpointDue | Diverged


class LoopConfig(NamedTuple):
    """What the loop needs of a plan. Steps of 0 mean never."""

    accumulation: int
    schedule: ScheduleConfig
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    state_steps: frozenset[int] = frozenset()
    ramp: BatchRamp | None = None  # where the batch grows
    collect_every_steps: int = 0  # garbage, in the step's own time


class Trainer(NamedTuple):
    """What trains: `trunk` is `model`, compiled or not; `clip` acts on the weights after each step.

    `scaler` keeps gradients within float16 and has the optimizer leave a step out where they are not.
    """

    model: GPT
    trunk: Callable[[Tensor], Tensor]
    optimizer: MuonAdamW
    clip: QKClip | None = None
    z_loss: float = 0.0
    scaler: LossScaler | None = None


class _Unread(NamedTuple):
    """A step whose loss is still on the device."""

    loss: Tensor
    scales: StepScales
    total: float


def batch_loss(trainer: Trainer, batch: Batch) -> Tensor:
    """Mean loss of a micro-batch in nats a token, its z-loss included: a float32 scalar."""
    hidden_BTD = trainer.trunk(batch.inputs)
    return trainer.model.kernels.linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        trainer.model.head_weight(),
        batch.targets.flatten(),
        softcap=trainer.model.config.softcap,
        reduction="mean",
        z_loss=trainer.z_loss,
    )


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    config: LoopConfig,
    total_steps: Callable[[int], float],
    first_step: int = 0,
    mean: Callable[[Tensor], Tensor] = ALONE.mean,
) -> Iterator[Event]:
    """Events of a run from `first_step` on.

    Before an EvalDue, a StateDue, a CheckpointDue and the end, all losses are read back and the weights
    known to be finite: whoever looks at the run between two steps sees all of it.

    Args:
        batches: micro-batches on the device, from the first of `first_step` on.
        total_steps: steps of the run as known before a step; constant, or an estimate under a time horizon.
        mean: of losses over the ranks that share the steps.
    """
    step: int = first_step
    unread: list[_Unread] = []
    while step < (total := total_steps(step)):
        due = _due(step, config) if step > first_step else []
        if due and not _has_finite_weights(trainer.model):
            yield Diverged(step)
            return
        yield from due
        scales, accumulation = scales_at(step, total, config.schedule), config.accumulation
        if config.ramp is not None:
            accumulation = config.ramp.micros(step)
            scales = of_smaller_batch(scales, accumulation / config.accumulation)
        unread.append(_Unread(_step(trainer, batches, accumulation, scales), scales, total))
        step += 1
        if config.collect_every_steps and step % config.collect_every_steps == 0:
            gc.collect()
        if step % config.log_every_steps == 0 or _due(step, config):
            if not (yield from _read_back(trainer, step, unread, mean)):
                return
            unread = []
    if unread and not (yield from _read_back(trainer, step, unread, mean)):
        return
    if step > first_step and not _has_finite_weights(trainer.model):
        yield Diverged(step)


def _due(step: int, config: LoopConfig) -> list[Event]:
    """What is due after `step`; a checkpoint comes last, so that it holds what the others log."""
    due: list[Event] = []
    if config.eval_every_steps and step % config.eval_every_steps == 0:
        due.append(EvalDue(step))
    if step in config.state_steps:
        due.append(StateDue(step))
    if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
        due.append(CheckpointDue(step))
    return due


def _read_back(
    trainer: Trainer, step: int, unread: list[_Unread], mean: Callable[[Tensor], Tensor]
) -> Generator[Event, None, bool]:
    """The steps' losses up to the first that is not finite; whether the run goes on."""
    losses: list[float] = mean(torch.stack([each.loss for each in unread])).tolist()
    num_finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    last = step - len(losses) + num_finite
    if num_finite:
        finite = unread[:num_finite]
        yield StepsDone(
            last, losses[:num_finite], [each.scales for each in finite], [each.total for each in finite]
        )
    if num_finite < len(losses):
        yield Diverged(last + 1)
        return False
    if trainer.scaler is not None and trainer.scaler.is_exhausted():
        yield Diverged(step, SCALE_EXHAUSTED)
        return False
    return True


def _has_finite_weights(model: GPT) -> bool:
    """A step whose gradient overflowed has a finite loss: it shows in the weights first."""
    return bool(torch.stack([param.detach().isfinite().all() for param in model.parameters()]).all())


def _step(trainer: Trainer, batches: Iterator[Batch], accumulation: int, scales: StepScales) -> Tensor:
    """One optimizer step; its mean loss, still on the device."""
    total = None
    for _ in range(accumulation):
        loss = batch_loss(trainer, next(batches)) / accumulation
        scaled = loss if trainer.scaler is None else trainer.scaler.scaled(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    trainer.optimizer.step(scales, None if trainer.scaler is None else trainer.scaler.unscale_())
    if trainer.clip is not None:
        trainer.clip()
    assert total is not None
    return total


def warm_up(trainer: Trainer, rows: int, sequence_length: int, device: torch.device) -> None:
    """Compile and touch memory on synthetic tokens; weights, optimizer, generators stay the same."""
    generator = torch.Generator().manual_seed(0)
    vocab = trainer.model.config.vocab_size
    buffer = torch.randint(vocab, (2, rows, sequence_length), generator=generator).to(device)
    batch_loss(trainer, Batch(buffer, Cursor(step=0, micro=0))).backward()  # type: ignore[no-untyped-call]
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.optimizer.warm_up()
    if trainer.clip is not None:
        trainer.clip.forget()
