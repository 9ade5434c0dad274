"""The kernel table: each implementation's time and memory beside eager and compiled torch and its floor.

Forward and backward together (of a step: the step), on the same inputs, in interleaved rounds with cold
caches; every implementation's results are compared with the reference's after it was timed, and a wrong one
gets no figure. Implementations are timed as training calls them: those of the trunk through torch.compile,
the loss and the optimizer's as they are.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from tabulate import tabulate

from kernels.bench_cases import SHAPES, Shapes, make_case
from kernels.bench_measure import Rates, Stopwatch, measure_rates
from kernels.bench_rows import SEED, Row, measure_case, subjects, with_memory

# On the CPU a figure of memory takes a process of its own: only where memory is what the op is about.
MEMORY_ON_CPU = ("linear_cross_entropy", "attention")
DEFAULT_SHAPES = {"cuda": "d12", "mps": "d4", "cpu": "d4"}


class KernelTable(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and what they were measured on."""

    device: str
    versions: dict[str, str]
    date: str
    shapes: str
    rounds: int
    rates: Rates
    rows: tuple[Row, ...]
    not_reached: tuple[str, ...] = ()  # ops that the time did not suffice for

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows without a figure that should have one."""
        return tuple(row for row in self.rows if row.failure)


class _Setting(NamedTuple):
    """What all ops are measured with."""

    device: torch.device
    shapes: Shapes
    dtype: torch.dtype
    rounds: int
    compiled: bool
    stopwatch: Stopwatch
    rates: Rates


def measure(
    device: torch.device,
    ops: Sequence[str],
    shapes: Shapes | str | None,
    rounds: int,
    device_name: str,
    versions: dict[str, str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    compiled: bool = True,
    budget_s: float = float("inf"),
    on_op: Callable[[KernelTable], None] | None = None,
) -> KernelTable:
    """Measure every implementation of these ops that runs on the device.

    Args:
        shapes: or their name in `SHAPES`; None for the device's.
        versions: of the machine's libraries; torch's and triton's are kept.
        dtype: of activations and of the polar step.
        compiled: whether to use torch.compile; without it that baseline falls away.
        budget_s: seconds after which no further op is begun.
        on_op: told the table so far after each op.
    """
    start = time.monotonic()
    named = SHAPES[shapes or DEFAULT_SHAPES[device.type]] if not isinstance(shapes, Shapes) else shapes
    stopwatch = Stopwatch(device)
    rates = measure_rates(stopwatch, device, (dtype, torch.float32))
    setting = _Setting(device, named, dtype, rounds, compiled, stopwatch, rates)
    table = KernelTable(
        device=device_name,
        versions={name: versions[name] for name in ("torch", "triton") if name in versions},
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        shapes=named.name,
        rounds=rounds,
        rates=rates,
        rows=(),
        not_reached=tuple(ops),
    )
    for position, op in enumerate(ops):
        if time.monotonic() - start > budget_s:
            break
        rows = _rows_of(op, setting)
        table = msgspec.structs.replace(
            table, rows=(*table.rows, *rows), not_reached=tuple(ops[position + 1 :])
        )
        if on_op is not None:
            on_op(table)
    return table


def _rows_of(op: str, setting: _Setting) -> list[Row]:
    device, shapes, dtype, rounds, compiled, stopwatch, rates = setting
    rows: list[Row] = []
    # On a GPU the polar step is measured on square matrices too: kernels take another way there.
    for stacked in ("long", "square") if op == "polar_express" and device.type == "cuda" else ("long",):
        case = make_case(op, shapes, device, dtype, SEED, stacked)
        rows += measure_case(case, device, subjects(op, device, dtype, compiled), rounds, stopwatch, rates)
        del case
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cpu" and op in MEMORY_ON_CPU and shapes in SHAPES.values():
        rows = [with_memory(row, shapes.name, dtype, compiled) for row in rows]
    return rows


def kernel_table(table: KernelTable) -> str:
    """The table a person reads."""
    rates = table.rates
    products = ", ".join(f"{name} {rate / 1e12:,.2f}" for name, rate in rates.matmul_flops_per_s.items())
    versions = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    lines = [
        f"{table.device}, {versions}, {table.date}: shapes {table.shapes}, medians of {table.rounds} rounds",
        f"floors from a copy at {rates.copy_bytes_per_s / 1e9:,.1f} GB/s and products in TFLOP/s: {products}",
        "",
        tabulate(
            [_cells(row) for row in table.rows],
            headers=(
                "op",
                "implementation",
                "ms",
                "least to greatest",
                "x eager",
                "x compiled",
                "of floor",
                "MiB",
            ),
            colalign=("left", "left", *["right"] * 6),
            disable_numparse=True,
        ),
    ]
    shapes = {row.op: f"{row.op}: {row.shape} {row.dtype}, floor of {row.floor_of}" for row in table.rows}
    lines += ["", *shapes.values()]
    lines += [f"no figure: {row.op} {row.implementation}: {row.failure}" for row in table.failures]
    lines += [
        f"left out: {row.op} {row.implementation}: {row.left_out}" for row in table.rows if row.left_out
    ]
    lines += [f"not reached in time: {op}" for op in table.not_reached]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    spread = row.seconds
    return (
        row.op,
        row.implementation,
        f"{spread.median * 1e3:,.3f}" if spread else "n/a",
        f"{spread.least * 1e3:,.3f} to {spread.greatest * 1e3:,.3f}" if spread else "",
        f"{row.times_eager:.2f}" if row.times_eager else "",
        f"{row.times_compiled:.2f}" if row.times_compiled else "",
        f"{row.floor_share:.0%}" if row.floor_share else "",
        f"{row.extra_peak_bytes / 2**20:,.0f}" if row.extra_peak_bytes is not None else "n/a",
    )
