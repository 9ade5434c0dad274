"""`bench perf`: how fast this machine trains, loads and prepares, beside its own matrix rate."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import torch

from bench.checkup.unscaled import TOKENIZER_CHARS, VALIDATION_BYTES, stdlib_tokens, unscaled_plan
from bench.data.corpus import open_corpus, tokenizer_for
from bench.data.loader import Loader
from bench.data.prepare import prepare
from bench.data.prepared import Prepared
from bench.host.allocator import release_garbage
from bench.host.backends import FLOAT32_PRODUCTS
from bench.host.device import Device, configure, open_device
from bench.host.facts import MachineFacts
from bench.host.machine import detect
from bench.spec.model_table import Model
from bench.spec.plan import Plan
from bench.spec.recipe import Batch, Compile, Data, Horizon, Recipe
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer, steps_only
from bench.training.loop import StepsDone, train, warm_up
from kernels.bench_measure import Spread, spread_of

MATMUL_SIZE = 2048
SEED = 1
# The shape at which this project compares itself with nanochat's CPU path: d4, width 256, 16 rows of 512.
PERF_MODEL = Model(depth=4, head_dim=128, sequence_length=512, vocab_size=8192, window_pattern="L")
PERF_ROWS = 16


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; rates a second."""

    device: str
    products_in_float32: str  # dtypes that the processor has no units for
    matmul_bf16_flops: Spread
    matmul_fp32_flops: Spread
    train_tokens: Spread
    train_flops: Spread
    train_share_of_matmul: float
    first_step_s: float
    peak_bytes: int
    peak_method: str
    loader_tokens: dict[str, Spread]
    loader_share_of_step: float
    prepare_bytes: Spread


def measure(space: Workspace, num_steps: int) -> Figures:
    """All figures; about a minute with a warm compile cache."""
    facts = detect(environment={})
    device = open_device(facts.device_kind)
    settings = configure(device, cpu_cores=facts.cpu_cores)
    plan = perf_plan(space, facts)
    prepared = stdlib_tokens(space, plan.model.vocab_size)
    matmul_before = matmul_rate(device, torch.bfloat16)
    first_step_s, step_s = _training(plan, device, prepared, num_steps)
    matmul = _joined(matmul_before, matmul_rate(device, torch.bfloat16))
    tokens = spread_of([plan.batch_tokens / seconds for seconds in step_s])
    flops = spread_of([plan.batch_tokens * plan.flops_per_token / seconds for seconds in step_s])
    peak = device.peak_memory()
    loader = {f"T={length}": _loading(prepared, length) for length in (512, 2048)}
    return Figures(
        device=facts.device_name,
        products_in_float32=settings.get(FLOAT32_PRODUCTS, ""),
        matmul_bf16_flops=matmul,
        matmul_fp32_flops=matmul_rate(device, torch.float32),
        train_tokens=tokens,
        train_flops=flops,
        train_share_of_matmul=flops.median / matmul.median,
        first_step_s=first_step_s,
        peak_bytes=peak.bytes,
        peak_method=peak.method,
        loader_tokens=loader,
        loader_share_of_step=tokens.median / loader["T=512"].median,
        prepare_bytes=_preparing(space),
    )


def perf_plan(space: Workspace, facts: MachineFacts) -> Plan:
    """The plan of the benchmark's shape on this machine."""
    recipe = Recipe(
        model=PERF_MODEL,
        horizon=Horizon(iterations=1000),
        batch=Batch(tokens=PERF_ROWS * PERF_MODEL.sequence_length, device_sequences=PERF_ROWS),
        data=Data(dataset="stdlib", tokenizer_chars=TOKENIZER_CHARS),
        compile=Compile(enabled=True),
    )
    return unscaled_plan(space, facts, recipe)


def _timed(function: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def matmul_rate(device: Device, dtype: torch.dtype) -> Spread:
    """FLOP/s of a square product, warm."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device.torch_device).to(dtype)
    b = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device.torch_device).to(dtype)

    def product() -> None:
        a @ b
        device.synchronize()

    _timed(product, 3)
    return spread_of([2 * MATMUL_SIZE**3 / seconds for seconds in _timed(product, 15)])


def _training(plan: Plan, device: Device, prepared: Prepared, num_steps: int) -> tuple[float, list[float]]:
    """(seconds until the first step can start, seconds of each step), real batches and optimizer included."""
    trainer = build_trainer(
        plan, device.torch_device, device.compute_dtype(plan.recipe.precision.compute), SEED
    )
    shape = (plan.device_sequences, plan.model.sequence_length)
    (first_s,) = _timed(lambda: warm_up(trainer, *shape, device.torch_device), 1)
    release_garbage()
    step_s = []
    with Loader(prepared, shape[1], shape[0], 1, 0, 1, seed=SEED, device_pin=False) as loader:
        batches = (batch.to(device.torch_device) for batch in loader)
        events = train(trainer, batches, steps_only(plan), lambda _: 1000.0)
        mark = time.perf_counter()
        for event in islice(events, num_steps + 2):
            assert isinstance(event, StepsDone)
            device.synchronize()
            step_s.append(time.perf_counter() - mark)
            mark = time.perf_counter()
    return first_s, step_s[2:]


def _loading(prepared: Prepared, sequence_length: int) -> Spread:
    """Tokens a second from the loader alone, packing included."""
    rows, count = 16, 100
    rates = []
    for seed in range(3):
        with Loader(prepared, sequence_length, rows, 1, 0, 1, seed=seed, device_pin=False) as loader:
            (seconds,) = _timed(lambda: [None for _ in islice(loader, count)], 1)
        rates.append(rows * sequence_length * count / seconds)
    return spread_of(rates)


def _preparing(space: Workspace) -> Spread:
    """Bytes of text a second on one core, from files to tokens on disk."""
    corpus = open_corpus("stdlib", space.data, validation_bytes=VALIDATION_BYTES)
    tokenizer = tokenizer_for(corpus, PERF_MODEL.vocab_size, space.data, TOKENIZER_CHARS)
    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            seconds += _timed(lambda: prepare(corpus, tokenizer, Path(folder)), 1)
    return spread_of([(corpus.train_bytes + corpus.validation_bytes) / one for one in seconds])


def _joined(a: Spread, b: Spread) -> Spread:
    return Spread((a.median + b.median) / 2, min(a.least, b.least), max(a.greatest, b.greatest))


def perf_table(figures: Figures) -> str:
    """The figures as lines a person reads."""
    is_emulated = "bfloat16" in figures.products_in_float32
    rows = [
        (
            "matrix product bf16",
            *_giga(figures.matmul_bf16_flops),
            "GFLOP/s, 2048 cubed, around training" + (", taken in float32" if is_emulated else ""),
        ),
        ("matrix product fp32", *_giga(figures.matmul_fp32_flops), "GFLOP/s"),
        ("training", *_plain(figures.train_tokens), "tok/s: d4, width 256, 16 x 512 tokens, vocabulary 8192"),
        (
            "training",
            *_giga(figures.train_flops),
            f"GFLOP/s, {figures.train_share_of_matmul:.0%} of the bf16 product",
        ),
        *(
            (f"loader {name}", *_plain(spread, 1e6), "M tok/s, packing included")
            for name, spread in figures.loader_tokens.items()
        ),
        ("prepare", *_plain(figures.prepare_bytes, 1e6), "MB/s of text on one core"),
    ]
    lines = [f"{figures.device}: median (least to greatest)"]
    lines += [f"  {name:<20} {middle:>9} ({low} to {high}) {unit}" for name, middle, low, high, unit in rows]
    lines.append(f"  loader in a step     {figures.loader_share_of_step:>9.3%}")
    lines.append(f"  until the first step {figures.first_step_s:>9.1f} s, compiling included")
    lines.append(f"  peak memory          {figures.peak_bytes / 2**20:>9,.0f} MiB ({figures.peak_method})")
    return "\n".join(lines)


def _giga(spread: Spread) -> tuple[str, str, str]:
    return _plain(spread, 1e9)


def _plain(spread: Spread, unit: float = 1.0) -> tuple[str, str, str]:
    digits = 1 if spread.median / unit < 100 else 0
    low, middle, high = spread.least / unit, spread.median / unit, spread.greatest / unit
    return f"{middle:,.{digits}f}", f"{low:,.{digits}f}", f"{high:,.{digits}f}"
