"""`bench perf-ranks`: a step shared by N processes of this machine, beside what the formula predicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from bench.checkup.perf import PERF_MODEL, PERF_ROWS
from bench.checkup.unscaled import unscaled_plan
from bench.data.loader import Batch, Loader
from bench.data.prepared import Prepared
from bench.data.text import text_of
from bench.host.device import Device, configure, open_device
from bench.host.facts import MachineFacts
from bench.host.machine import detect
from bench.spec.parallel import Links, Parallel, predict
from bench.spec.plan import Plan
from bench.spec.plan_machine import PlanMachine
from bench.spec.recipe import Batch as BatchTable
from bench.spec.recipe import Compile, Data, Horizon, Recipe
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer
from bench.training.loop import batch_loss
from bench.training.ranks import ALONE, Ranks, joined
from kernels.bench_measure import Spread, spread_of
from model.optimizers.combined import all_gather, reduce_scatter
from model.schedule import StepScales

SEED = 1
SCALES = StepScales(1.0, 0.95, 1.0)


class RanksFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One step of `world_size` processes as measured and as predicted from the rest; seconds."""

    device: str
    world_size: int
    lone_step_s: Spread  # each process by itself on its share of the batch, all at the same time
    shared_step_s: Spread
    bytes_per_s: Spread  # of the processes' link, by both collectives at the size of the model
    predicted: Parallel
    predicted_over_measured: float


class Round(NamedTuple):
    """One turn of a rank through all three, in seconds."""

    lone_s: float
    shared_s: float
    moving_s: float


def measure_ranks(
    space: Workspace, world_size: int, rounds: int, environment: Mapping[str, str]
) -> RanksFigures | None:
    """The figures of the benchmark's shape, the three measured in turn; None on any rank but the first."""
    facts = detect("cpu", environment={})
    plan, device = ranks_plan(space, facts, world_size), open_device("cpu")
    with joined(environment, world_size) as ranks:
        configure(device, cpu_cores=max(facts.cpu_cores // ranks.size, 1))
        with ranks.in_turn():
            prepared = text_of(plan.recipe, space.data, facts.cpu_cores)[1]
        taken = _rounds(plan, device, prepared, ranks, rounds)
        return _figures(plan, facts, taken) if ranks.is_first else None


def _figures(plan: Plan, facts: MachineFacts, taken: list[Round]) -> RanksFigures:
    lone, shared, _ = (spread_of(list(column)) for column in zip(*taken, strict=True))
    moved = 4 * plan.parameters_total * (plan.world_size - 1) // plan.world_size
    bandwidth = spread_of([2 * moved / one.moving_s for one in taken])
    predicted = _predicted(plan, lone.median, bandwidth.median)
    return RanksFigures(
        device=facts.device_name,
        world_size=plan.world_size,
        lone_step_s=lone,
        shared_step_s=shared,
        bytes_per_s=bandwidth,
        predicted=predicted,
        predicted_over_measured=predicted.step_s / shared.median,
    )


def ranks_plan(space: Workspace, facts: MachineFacts, world_size: int) -> Plan:
    """The benchmark's shape, uncompiled, on so many processes."""
    recipe = Recipe(
        model=PERF_MODEL,
        horizon=Horizon(iterations=1000),
        batch=BatchTable(
            tokens=PERF_ROWS * PERF_MODEL.sequence_length * world_size, device_sequences=PERF_ROWS
        ),
        data=Data(dataset="stdlib", tokenizer_chars=20_000_000),
        compile=Compile(enabled=False),
    )
    return unscaled_plan(space, facts, recipe, world_size)


def _predicted(plan: Plan, lone_step_s: float, bytes_per_s: float) -> Parallel:
    share = plan.batch_tokens * plan.flops_per_token / plan.world_size
    machine: PlanMachine = msgspec.structs.replace(
        plan.machine, device_count=1, flops_per_s=share / lone_step_s, rate_source="measured here"
    )
    links = Links(link_bytes_per_s=bytes_per_s, network_bytes_per_s=None, source="measured here")
    return predict(msgspec.structs.replace(plan, machine=machine), 1, links)


def _rounds(plan: Plan, device: Device, prepared: Prepared, ranks: Ranks, rounds: int) -> list[Round]:
    rows, length = plan.device_sequences, plan.model.sequence_length
    with Loader(prepared, length, rows, 1, ranks.rank, ranks.size, SEED, device_pin=False) as loader:
        works = [_step(plan, device, loader, who) for who in (ALONE, ranks)]
        works.append(_moving(plan.parameters_total, ranks))
        taken = [Round(*(_timed(work, ranks) for work in works)) for _ in range(rounds + 1)]
    return taken[1:]  # the first touches all memory


def _step(plan: Plan, device: Device, batches: Iterator[Batch], ranks: Ranks) -> Callable[[], None]:
    trainer = build_trainer(plan, device.torch_device, torch.bfloat16, SEED, ranks.group)

    def step() -> None:
        batch_loss(trainer, next(batches)).backward()  # type: ignore[no-untyped-call]
        trainer.optimizer.step(SCALES)
        trainer.optimizer.zero_grad(set_to_none=True)

    return step


def _moving(num_parameters: int, ranks: Ranks) -> Callable[[], None]:
    """What a step moves, without anything else."""
    own = torch.zeros(-(-num_parameters // ranks.size))
    whole: Tensor = torch.zeros(len(own) * ranks.size)

    def move() -> None:
        reduce_scatter(own, whole, group=ranks.group)
        all_gather(whole, own, group=ranks.group)

    return move


def _timed(work: Callable[[], None], ranks: Ranks) -> float:
    """Seconds until the last rank is done."""
    ranks.wait()
    start = time.perf_counter()
    work()
    ranks.wait()
    return time.perf_counter() - start


def ranks_table(figures: RanksFigures) -> str:
    """The figures as lines a person reads."""
    rows = [
        ("alone", figures.lone_step_s, 1.0, "s a step of its share of the batch, all processes at once"),
        ("together", figures.shared_step_s, 1.0, "s a step"),
        ("link", figures.bytes_per_s, 1e9, "GB/s each way a process"),
    ]
    lines = [f"{figures.device}, {figures.world_size} processes: median (least to greatest)"]
    for name, spread, unit, words in rows:
        low, middle, high = (value / unit for value in (spread.least, spread.median, spread.greatest))
        lines.append(f"  {name:<10} {middle:>7.3f} ({low:.3f} to {high:.3f}) {words}")
    ratio = figures.predicted_over_measured
    lines.append(f"  predicted  {figures.predicted.step_s:>7.3f} s a step, {ratio:.2f} of the measured")
    return "\n".join(lines)
