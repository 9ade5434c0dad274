"""The training loop as a generator of events: it never prints, times or scores itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data.loader import Batch
from model.gpt import GPT
from model.optimizers.combined import MuonAdamW
from model.schedule import ScheduleConfig, StepScales, scales_at


class StepsDone(NamedTuple):
    """`losses` of the last steps, up to and including `step` (1 is the first), read back in one go."""

    step: int
    losses: list[float]
    scales: StepScales


class EvalDue(NamedTuple):
    """The run stands between steps; evaluate now."""

    step: int


class CheckpointDue(NamedTuple):
    """The run stands between steps; save now."""

    step: int


class Diverged(NamedTuple):
    """The loss of `step` is not finite; the generator ends here."""

    step: int
    loss: float


Event = StepsDone | EvalDue | CheckpointDue | Diverged


class LoopConfig(NamedTuple):
    """What the loop needs of a plan. Steps of 0 mean never."""

    accumulation: int
    schedule: ScheduleConfig
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int


class Trainer(NamedTuple):
    """What trains: `trunk` is `model`, compiled or not."""

    model: GPT
    trunk: Callable[[Tensor], Tensor]
    optimizer: MuonAdamW


def batch_loss(trainer: Trainer, batch: Batch) -> Tensor:
    """Mean loss of a micro-batch in nats a token, a float32 scalar."""
    hidden_BTD = trainer.trunk(batch.inputs)
    return trainer.model.kernels.linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        trainer.model.head_weight(),
        batch.targets.flatten(),
        softcap=trainer.model.config.softcap,
        reduction="mean",
    )


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    config: LoopConfig,
    total_steps: Callable[[int], float],
    first_step: int = 0,
) -> Iterator[Event]:
    """Events of a run from `first_step` on.

    Args:
        batches: micro-batches on the device, from the first of `first_step` on.
        total_steps: steps of the run as known before a step; constant, or an estimate under a time horizon.
    """
    step, unread, scales = first_step, [], StepScales(0.0, 0.0, 0.0)
    while step < (total := total_steps(step)):
        if _due(step, config.eval_every_steps):
            yield EvalDue(step)
        if _due(step, config.checkpoint_every_steps) and step > first_step:
            yield CheckpointDue(step)
        scales = scales_at(step, total, config.schedule)
        unread.append(_step(trainer, batches, config.accumulation, scales))
        step += 1
        if step % config.log_every_steps == 0:
            losses = _read(unread)
            unread = []
            yield StepsDone(step, losses, scales)
            bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if bad is not None:
                yield Diverged(step - len(losses) + bad + 1, losses[bad])
                return
    if unread:
        yield StepsDone(step, _read(unread), scales)


def _due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step > 0 and step % every_steps == 0


def _step(trainer: Trainer, batches: Iterator[Batch], accumulation: int, scales: StepScales) -> Tensor:
    """One optimizer step; its mean loss, still on the device."""
    total = None
    for _ in range(accumulation):
        loss = batch_loss(trainer, next(batches)) / accumulation
        loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    trainer.optimizer.step(scales)
    trainer.optimizer.zero_grad(set_to_none=True)
    assert total is not None
    return total


def _read(losses: list[Tensor]) -> list[float]:
    return [float(loss) for loss in torch.stack(losses).tolist()]


def warm_up(trainer: Trainer, rows: int, sequence_length: int, device: torch.device) -> None:
    """Compile and touch memory on synthetic tokens; weights, optimizer, generators and gradients stay as they were."""
    generator = torch.Generator().manual_seed(0)
    vocab = trainer.model.config.vocab_size
    buffer = torch.randint(vocab, (2, rows, sequence_length), generator=generator).to(device)
    loss = trainer.model.kernels.linear_cross_entropy(
        trainer.trunk(buffer[0]).flatten(0, 1),
        trainer.model.head_weight(),
        buffer[1].flatten(),
        softcap=trainer.model.config.softcap,
        reduction="mean",
    )
    loss.backward()  # type: ignore[no-untyped-call]
    trainer.optimizer.zero_grad(set_to_none=True)
