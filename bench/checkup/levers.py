"""`bench perf-levers`: what each lever costs a training step, its steps in turn with those of its control."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec
import torch

from bench.checkup.lever_costs import LIMITS, LeverCost, cost_of
from bench.checkup.unscaled import unscaled_plan
from bench.data.loader import Batch, Cursor
from bench.errors import RecipeError
from bench.host.allocator import release_garbage, tune_allocator
from bench.host.device import Device, configure, open_device
from bench.host.machine import detect
from bench.spec.plan import Plan
from bench.spec.recipe import BatchWarmup, Muon, Recipe, Schedule
from bench.spec.submission import differences, load
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer, steps_only
from bench.training.loop import train, warm_up
from model.schedule import StepScales

T = TypeVar("T")
BASE = "d4"  # the submission that the levers' own are deltas of, or of a delta of
BASES = (BASE, "quick")
# A lever with a limit is timed in steps of 4,096 tokens (the base's rows are of 256), which is what a d6 step
# means in `make kernels`; the others in a quarter of that, since there are thirty: a cost of theirs that does
# not grow with the batch, as an optimizer's, counts four times.
DEPTH, ROWS, LIMITED_ROWS = 6, 4, 16
SEED = 1
UNTIMED_STEPS = 2
# A lever with a limit is timed longer, the others half as long, but for an interval of their median.
LIMITED_FACTOR, LEAST_PAIRS = 2, 6
# All that the Muon step can do besides momentum, polar step and update, against none of it.
FOUR = "equilibration, Muon+, NorMuon, decay"  # the name that `LIMITS` has for it
FOUR_IN_MUON = Muon(equilibrate="row", renormalise=True)
BARE_MUON = Muon(normuon_beta2=0.0, weight_decay=0.0)
NOISE = "nothing"  # the base against itself: what the method sees where there is nothing to see


class Lever(NamedTuple):
    """A recipe and what it is compared with."""

    recipe: Recipe
    control: Recipe
    control_name: str


def levers(space: Workspace) -> dict[str, Lever]:
    """Submissions that change one thing of the base, or of one that does, by what follows its name."""
    recipes = {path.stem: load(path).recipe for path in sorted(space.submissions.glob(f"{BASE}-*.toml"))}
    controls = {name: load(space.submissions / f"{name}.toml").recipe for name in BASES}
    controls |= {name: one for name, one in recipes.items() if one.base in BASES}
    return {
        name.removeprefix(f"{BASE}-"): Lever(one, controls[one.base], one.base)
        for name, one in recipes.items()
        if one.base in controls
    }


def measure_levers(
    space: Workspace, names: list[str], num_steps: int, report: Callable[[LeverCost], None]
) -> list[LeverCost]:
    """The cost of each lever, or of all that a step can tell apart where none is named; told as they come.

    A lever of the schedule alone costs a step nothing: it is numbers from the host.

    Raises:
        RecipeError: a name that no submission has.
    """
    known = levers(space)
    possible = [NOISE, FOUR, *known]
    dear = [name for name in possible if name not in known or not _is_schedule_alone(known[name])]
    if unknown := [name for name in names if name not in possible]:
        raise RecipeError(f"no lever {unknown[0]!r}", f"there are {', '.join(possible)}")
    base = load(space.submissions / f"{BASE}.toml").recipe
    known[NOISE] = Lever(base, base, BASE)
    costs, peaks = [], dict[tuple[str, int], int]()
    for name in names or dear:
        steps = num_steps * LIMITED_FACTOR if name in LIMITS else max(num_steps // 2, LEAST_PAIRS)
        if name == FOUR:
            found = cost_of(name, "the bare Muon step", *_alone(_muon_steps_in_turn, space, base, steps))
        else:
            lever, rows = known[name], LIMITED_ROWS if name in LIMITS else ROWS
            control = lever.control_name, rows
            if control not in peaks:
                peaks[control] = _alone(_peak_bytes, space, lever.control, rows)
            measured = _alone(_measured, space, lever.recipe, lever.control, rows, steps)
            found = cost_of(name, lever.control_name, *measured, peaks[control])
        report(found)
        costs.append(found)
    return costs


def _is_schedule_alone(lever: Lever) -> bool:
    changes = differences(lever.control, lever.recipe)
    return all(path.startswith(("schedule.", "batch.")) for path, *_ in changes)


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """The result of a call in a fresh process: no caches, no compiled code, no memory of others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _device() -> Device:
    """As a run opens it, in this fresh process."""
    tune_allocator()
    facts = detect(environment={})
    device = open_device(facts.device_kind)
    configure(device, cpu_cores=facts.cpu_cores)
    return device


def _plan(space: Workspace, recipe: Recipe, rows: int = ROWS) -> Plan:
    """One micro-batch of d6; of schedules a step sees the multipliers only, which cost nothing."""
    model = msgspec.structs.replace(recipe.model, depth=DEPTH)
    batch = msgspec.structs.replace(recipe.batch, tokens=rows * model.sequence_length, device_sequences=rows)
    schedule: Schedule = msgspec.structs.replace(recipe.schedule, batch_warmup=BatchWarmup())
    changed = msgspec.structs.replace(recipe, model=model, batch=batch, schedule=schedule)
    return unscaled_plan(space, detect(environment={}), changed)


def _running(plan: Plan, device: Device) -> Iterator[object]:
    """Events of a run on random tokens, compiled and two steps old."""
    dtype = device.compute_dtype(plan.recipe.precision.compute)
    trainer = build_trainer(plan, device.torch_device, dtype, SEED)
    shape = (plan.device_sequences, plan.model.sequence_length)
    warm_up(trainer, *shape, device.torch_device)
    release_garbage()
    generator = torch.Generator().manual_seed(SEED)

    def batches() -> Iterator[Batch]:
        while True:
            tokens = torch.randint(plan.model.vocab_size, (2, *shape), generator=generator)
            yield Batch(tokens.to(device.torch_device), Cursor(step=0, micro=0))

    events = train(trainer, batches(), steps_only(plan), lambda _: 1000.0)
    for _ in islice(events, UNTIMED_STEPS):
        device.synchronize()
        device.sample_memory()
    return events


def _measured(
    space: Workspace, recipe: Recipe, control: Recipe, rows: int, num_steps: int
) -> tuple[list[float], list[float], int]:
    """(seconds of its steps, of its control's, its peak in bytes); the peak is read before the control is."""
    device = _device()
    lever = _running(_plan(space, recipe, rows), device)
    peak_bytes = device.peak_memory().bytes
    under = _running(_plan(space, control, rows), device)

    def step_of(events: Iterator[object]) -> Callable[[], object]:
        return lambda: next(events)

    return *_in_turn(device, step_of(lever), step_of(under), num_steps), peak_bytes


def _peak_bytes(space: Workspace, recipe: Recipe, rows: int) -> int:
    device = _device()
    _running(_plan(space, recipe, rows), device)
    return device.peak_memory().bytes


def _in_turn(
    device: Device, one: Callable[[], object], other: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call of both; the first of a round changes."""
    seconds: dict[Callable[[], object], list[float]] = {one: [], other: []}
    for round_ in range(rounds):
        for call in (one, other) if round_ % 2 else (other, one):
            start = time.perf_counter()
            call()
            device.synchronize()
            seconds[call].append(time.perf_counter() - start)
    return seconds[one], seconds[other]


def _muon_steps_in_turn(space: Workspace, base: Recipe, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds of the optimizer's steps of the matrices alone, with all four levers and bare."""
    device = _device()
    four, bare = (_muon_step(space, base, muon, device) for muon in (FOUR_IN_MUON, BARE_MUON))
    _in_turn(device, four, bare, UNTIMED_STEPS)
    return _in_turn(device, four, bare, num_steps)


def _muon_step(space: Workspace, base: Recipe, muon: Muon, device: Device) -> Callable[[], object]:
    optimizer = msgspec.structs.replace(base.optimizer, muon=muon)
    plan = _plan(space, msgspec.structs.replace(base, optimizer=optimizer))
    dtype = device.compute_dtype(plan.recipe.precision.compute)
    trainer = build_trainer(plan, device.torch_device, dtype, SEED)
    ours, generator = trainer.optimizer, torch.Generator().manual_seed(SEED)
    ours.param_groups = [group for group in ours.param_groups if group["kind"] == "muon"]
    params = [param for group in ours.param_groups for param in group["params"]]
    grads = [torch.randn(param.shape, generator=generator).to(param.device) for param in params]
    scales = StepScales(learning_rate=1e-3, momentum=0.95, weight_decay=1.0)

    def step() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        ours.step(scales)

    return step
