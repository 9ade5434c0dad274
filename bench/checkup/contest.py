"""Training with several choices of kernels side by side: same model, text and device, steps in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import msgspec
import torch

from bench.checkup.unscaled import TOKENIZER_CHARS, stdlib_tokens, unscaled_plan
from bench.data.loader import Batch, Loader
from bench.data.prepared import Prepared
from bench.host.allocator import release_garbage
from bench.host.device import Device
from bench.host.facts import MachineFacts
from bench.host.peaks import declared_peak, mfu
from bench.spec.model_table import Model
from bench.spec.plan import Plan
from bench.spec.recipe import Batch as BatchTable
from bench.spec.recipe import Compile, Horizon, Kernels, Precision, Recipe
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer, steps_only
from bench.training.loop import StepsDone, train, warm_up
from kernels.bench_measure import Spread, spread_of
from kernels.choices import REFERENCE

SEED = 1
# A further contender is built only where this many times the last one's building still fits.
BUILD_MARGIN = 1.5


class Contender(NamedTuple):
    """One choice of kernels to train with; `rows` a device takes at once."""

    name: str
    kernels: Kernels
    rows: int


class Trial(NamedTuple):
    """What they train: a model on the built-in text; `tokenizer_chars` of it make the tokenizer."""

    model: Model
    batch_tokens: int
    contenders: tuple[Contender, ...]
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True
    most_rounds: int = 20
    tokenizer_chars: int = TOKENIZER_CHARS


def references(**others: str) -> Kernels:
    """Every op by its reference, but for those named."""
    return msgspec.convert(dict.fromkeys(Kernels.__struct_fields__, REFERENCE) | others, Kernels)


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """One contender's training; rates over single optimizer steps."""

    name: str
    kernels: dict[str, str]
    rows_at_once: int
    ready_s: float  # until its first steps were done, compiling included
    peak_bytes: int | None = None  # of this contender alone
    peak_method: str = ""
    tokens_per_s: Spread | None = None
    flops_per_s: float | None = None
    mfu: float | None = None
    losses: tuple[float, ...] = ()  # of all its steps, in order
    failure: str = ""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """training.json: contenders on one model and text, their steps interleaved."""

    device: str
    versions: dict[str, str]
    depth: int
    sequence_length: int
    vocab_size: int
    batch_tokens: int
    compute_dtype: str
    flops_per_token: int
    contenders: tuple[Trained, ...] = ()


class Running(NamedTuple):
    """A contender between two of its steps."""

    trained: Trained
    events: Iterator[object]
    step_s: list[float]


def contest(
    space: Workspace,
    device: Device,
    facts: MachineFacts,
    trial: Trial,
    left: Callable[[], float],
    write: Callable[[Training], None],
) -> Training:
    """Steps of every contender in turn, on the same text, until the time is used.

    Args:
        left: seconds left.
    """
    model = trial.model
    prepared = stdlib_tokens(space, model.vocab_size, trial.tokenizer_chars)
    plans = [_plan(space, facts, trial, contender) for contender in trial.contenders]
    training = Training(
        device=facts.device_name,
        versions=facts.versions,
        depth=model.depth,
        sequence_length=model.sequence_length,
        vocab_size=model.vocab_size,
        batch_tokens=trial.batch_tokens,
        compute_dtype=plans[0].recipe.precision.compute,
        flops_per_token=plans[0].flops_per_token,
    )
    running: list[Running] = []
    build_s = 0.0
    for contender, plan in zip(trial.contenders, plans, strict=True):
        start = time.monotonic()
        if left() < BUILD_MARGIN * build_s:
            running.append(_stopped(contender, plan, "not reached in time"))
            continue
        try:
            running.append(_begin(contender, plan, device, prepared, trial.dtype))
        except Exception as error:  # a broken kernel or too little memory: the others still train
            running.append(_stopped(contender, plan, sentence(error)))
        gc.collect()
        device.empty_cache()
        build_s = time.monotonic() - start
    return _rounds(training, running, device, facts, trial.most_rounds, left, write)


def _rounds(
    training: Training,
    running: list[Running],
    device: Device,
    facts: MachineFacts,
    most_rounds: int,
    left: Callable[[], float],
    write: Callable[[Training], None],
) -> Training:
    peak = declared_peak(facts, training.compute_dtype, num_devices=1)
    for round_ in range(most_rounds):
        start = time.monotonic()
        turn = round_ % len(running)
        for position in [*range(turn, len(running)), *range(turn)]:
            running[position] = _step(running[position], device)
        contenders = []
        for each in running:
            trained = each.trained
            if each.step_s:
                tokens = spread_of([training.batch_tokens / seconds for seconds in each.step_s])
                flops = tokens.median * training.flops_per_token
                trained = msgspec.structs.replace(
                    trained, tokens_per_s=tokens, flops_per_s=flops, mfu=mfu(flops, peak)
                )
            contenders.append(trained)
        training = msgspec.structs.replace(training, contenders=tuple(contenders))
        write(training)
        if left() < time.monotonic() - start:
            break
    return training


def _plan(space: Workspace, facts: MachineFacts, trial: Trial, contender: Contender) -> Plan:
    """The contender's plan on this machine."""
    recipe = Recipe(
        model=trial.model,
        horizon=Horizon(iterations=1000),
        batch=BatchTable(tokens=trial.batch_tokens, device_sequences=contender.rows),
        kernels=contender.kernels,
        precision=Precision(compute="float32" if trial.dtype == torch.float32 else "bfloat16"),
        compile=Compile(enabled=trial.compiled),
    )
    return unscaled_plan(space, facts, recipe)


def _begin(
    contender: Contender, plan: Plan, device: Device, prepared: Prepared, dtype: torch.dtype
) -> Running:
    """The contender after its first two steps, which compile, touch all memory and are not timed."""
    start = time.monotonic()
    device.reset_peak_memory()
    others = device.backend.peak_memory().bytes
    trainer = build_trainer(plan, device.torch_device, dtype, SEED)
    rows, length = plan.device_sequences, plan.model.sequence_length
    warm_up(trainer, rows, length, device.torch_device)
    release_garbage()
    pin = device.is_pinned_memory_allowed
    with Loader(prepared, length, rows, plan.accumulation, 0, 1, seed=SEED, device_pin=pin) as loader:
        batches: list[Batch] = [
            each.to(device.torch_device) for each in islice(loader, 2 * plan.accumulation)
        ]
    events = train(trainer, cycle(batches), steps_only(plan), lambda _: 1000.0)
    running = Running(_trained(contender, plan), events, [])
    for _ in range(2):
        running = _step(running, device)
        device.sample_memory()
    peak = device.peak_memory()
    trained = msgspec.structs.replace(
        running.trained,
        ready_s=time.monotonic() - start,
        peak_bytes=max(peak.bytes - others, 0),
        peak_method=f"{peak.method}, less what was in use before",
    )
    return Running(trained, events, [])


def _step(running: Running, device: Device) -> Running:
    """One more optimizer step; a contender that fails keeps the figures it has and steps no more."""
    if running.trained.failure:
        return running
    start = time.perf_counter()
    try:
        event = next(running.events)
        device.synchronize()
    except Exception as error:  # as in `contest`
        return running._replace(trained=msgspec.structs.replace(running.trained, failure=sentence(error)))
    seconds = time.perf_counter() - start
    if not isinstance(event, StepsDone):
        return running._replace(trained=msgspec.structs.replace(running.trained, failure="diverged"))
    losses = (*running.trained.losses, *event.losses)
    trained = msgspec.structs.replace(running.trained, losses=losses)
    return Running(trained, running.events, [*running.step_s, seconds])


def _trained(contender: Contender, plan: Plan) -> Trained:
    kernels = {choice["op"]: choice["implementation"] for choice in plan.kernels}
    return Trained(name=contender.name, kernels=kernels, rows_at_once=plan.device_sequences, ready_s=0.0)


def _stopped(contender: Contender, plan: Plan, failure: str) -> Running:
    return Running(msgspec.structs.replace(_trained(contender, plan), failure=failure), iter(()), [])


def sentence(error: Exception) -> str:
    """The first line of what an error says."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:300]}"
