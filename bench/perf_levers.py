"""`bench perf-levers`: what each lever costs a training step, its steps in turn with the base's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

import msgspec
import torch
from tabulate import tabulate

from bench.data.loader import Batch, Cursor
from bench.errors import RecipeError
from bench.host.allocator import release_garbage
from bench.host.device import Device, configure, open_device
from bench.host.machine import detect
from bench.perf import unscaled_plan
from bench.spec.plan import Plan
from bench.spec.recipe import BatchWarmup, Recipe
from bench.spec.submission import load
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer, loop_config
from bench.training.loop import train, warm_up
from kernels.bench_measure import Spread, spread_of

T = TypeVar("T")
BASE = "d4"  # the submission that each lever's own is a delta of
DEPTH, ROWS = 6, 8
SEED = 1
UNTIMED_STEPS = 2


class LeverCost(msgspec.Struct, frozen=True, kw_only=True):
    """A lever's step and the base's, taken in turn in one process; peaks each of a process of their own."""

    name: str
    step_s: Spread
    base_step_s: Spread
    times_base: Spread  # step by step
    peak_bytes: int
    base_peak_bytes: int


def lever_recipes(space: Workspace) -> dict[str, Recipe]:
    """The submissions that change one thing of the base, by what they are called after it."""
    recipes = {path.stem: load(path).recipe for path in sorted(space.submissions.glob(f"{BASE}-*.toml"))}
    return {name.removeprefix(f"{BASE}-"): one for name, one in recipes.items() if one.base == BASE}


def measure_levers(
    space: Workspace, names: list[str], num_steps: int, report: Callable[[LeverCost], None]
) -> list[LeverCost]:
    """The cost of each lever, or of all where none is named; each reported as it is known.

    Raises:
        RecipeError: a name that no submission has.
    """
    recipes = lever_recipes(space)
    if unknown := [name for name in names if name not in recipes]:
        raise RecipeError(f"no lever {unknown[0]!r}", f"there are {', '.join(recipes)}")
    base = load(space.submissions / f"{BASE}.toml").recipe
    base_peak = _alone(_peak_bytes, space, base, num_steps)
    costs = []
    for name in names or recipes:
        step_s, base_step_s = _alone(_steps_in_turn, space, [recipes[name], base], num_steps)
        ratios = [one / other for one, other in zip(step_s, base_step_s, strict=True)]
        cost = LeverCost(
            name=name,
            step_s=spread_of(step_s),
            base_step_s=spread_of(base_step_s),
            times_base=spread_of(ratios),
            peak_bytes=_alone(_peak_bytes, space, recipes[name], num_steps),
            base_peak_bytes=base_peak,
        )
        report(cost)
        costs.append(cost)
    return costs


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """The result of a call in a fresh process: no caches, no compiled code, no memory of others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _ready(space: Workspace, recipe: Recipe) -> tuple[Device, Plan]:
    facts = detect(environment={})
    device = open_device(facts.device_kind)
    configure(device, cpu_cores=facts.cpu_cores)
    model = msgspec.structs.replace(recipe.model, depth=DEPTH)
    batch = msgspec.structs.replace(recipe.batch, tokens=ROWS * model.sequence_length, device_sequences=ROWS)
    # One micro-batch is timed: a batch that grows costs no step more.
    schedule = msgspec.structs.replace(recipe.schedule, batch_warmup=BatchWarmup())
    changed = msgspec.structs.replace(recipe, model=model, batch=batch, schedule=schedule)
    return device, unscaled_plan(space, facts, changed)


def _running(plan: Plan, device: Device) -> Iterator[object]:
    """Events of a run on random tokens, compiled and two steps old."""
    trainer = build_trainer(
        plan, device.torch_device, device.compute_dtype(plan.recipe.precision.compute), SEED
    )
    shape = (plan.device_sequences, plan.model.sequence_length)
    warm_up(trainer, *shape, device.torch_device)
    release_garbage()
    generator = torch.Generator().manual_seed(SEED)

    def batches() -> Iterator[Batch]:
        while True:
            tokens = torch.randint(plan.model.vocab_size, (2, *shape), generator=generator)
            yield Batch(tokens.to(device.torch_device), Cursor(step=0, micro=0))

    config = loop_config(plan)._replace(log_every_steps=1, eval_every_steps=0, checkpoint_every_steps=0)
    events = train(trainer, batches(), config, lambda _: 1000.0)
    for _ in islice(events, UNTIMED_STEPS):
        device.synchronize()
    return events


def _steps_in_turn(space: Workspace, recipes: list[Recipe], num_steps: int) -> list[list[float]]:
    """Seconds of the steps of each, one of each in every round, the first of a round changing."""
    device, *_ = _ready(space, recipes[0])
    running = [_running(_ready(space, recipe)[1], device) for recipe in recipes]
    step_s: list[list[float]] = [[] for _ in running]
    for round_ in range(num_steps):
        for place in range(len(running)):
            which = (round_ + place) % len(running)
            start = time.perf_counter()
            next(running[which])
            device.synchronize()
            step_s[which].append(time.perf_counter() - start)
    return step_s


def _peak_bytes(space: Workspace, recipe: Recipe, num_steps: int) -> int:
    device, plan = _ready(space, recipe)
    for _ in islice(_running(plan, device), num_steps):
        device.sample_memory()
    return device.peak_memory().bytes


def levers_table(costs: list[LeverCost]) -> str:
    """Dearest first."""
    rows = [
        [
            cost.name,
            f"{cost.times_base.median:.3f}",
            f"{cost.times_base.least:.3f}-{cost.times_base.greatest:.3f}",
            f"{cost.step_s.median:.3f}",
            f"{cost.base_step_s.median:.3f}",
            f"{(cost.peak_bytes - cost.base_peak_bytes) / 2**20:+,.0f}",
        ]
        for cost in sorted(costs, key=lambda cost: -cost.times_base.median)
    ]
    headers = ["lever", "times base", "least-greatest", "step (s)", "base step (s)", "peak (MiB)"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *("right",) * 5))
