"""The rows of the kernel table: what is measured of one op, and each implementation's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import msgspec
import torch

from kernels.bench_cases import SHAPES, Case, make_case
from kernels.bench_measure import Rates, Spread, Stopwatch, dtype_name, extra_peak_bytes
from kernels.bench_run import error_ratios, given, run
from kernels.choices import REFERENCE, provable, runs_in
from kernels.dispatch import COMPILE_THEIR_PASSES, implementation

COMPILED = "reference compiled"
OUTSIDE_THE_TRUNK = ("linear_cross_entropy", "muon_direction", "polar_express", "muon_update", "adamw")
# Where a call takes so long that no figure is worth it, by (device, op, implementation). Measured with torch
# 2.13 on a 2-core Xeon: 16-56 s for the forward of 128-512 rows, 0.1 s a row, linear in the rows.
LEFT_OUT = {("cpu", "fp8_linear", "scaled-mm"): "torch's fp8 product on the CPU runs at some 5 MFLOP/s"}
SEED = 1

Loader = Callable[[], Callable[..., Any]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation of one op at one shape; what could not be measured is None."""

    op: str
    shape: str
    dtype: str
    implementation: str
    floor_s: float
    floor_of: str  # "bytes" or "FLOPs", whichever take longer
    seconds: Spread | None = None
    floor_share: float | None = None
    times_eager: float | None = None  # speed, eager's being 1
    times_compiled: float | None = None
    extra_peak_bytes: int | None = None
    error_ratio: float | None = None  # 1 is the most allowed
    failure: str = ""  # why there is no figure, though there should be one
    left_out: str = ""  # why none was asked for


def subjects(op: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> dict[str, Loader]:
    """What is measured, the eager reference first: functions that load what training would call."""
    if compiled:
        torch.compiler.reset()  # one function is compiled a limited number of times
    fused = [name for name in provable(op, device.type) if runs_in(op, name, dtype_name(dtype))]
    names = [REFERENCE, *([COMPILED] if compiled else []), *fused]
    return {name: partial(_load, op, name, compiled) for name in names}


def _load(op: str, name: str, compiled: bool) -> Callable[..., Any]:
    function = implementation(op, REFERENCE if name == COMPILED else name)
    if (op, name) in COMPILE_THEIR_PASSES:
        return partial(function, compiled=compiled)
    if name == COMPILED or (compiled and name != REFERENCE and op not in OUTSIDE_THE_TRUNK):
        made: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
        return made
    return function


def measure_case(
    case: Case,
    device: torch.device,
    loaders: Mapping[str, Loader],
    rounds: int,
    stopwatch: Stopwatch,
    rates: Rates,
) -> list[Row]:
    """A row for each of the loaders' functions; the first is the eager reference."""
    rows = {name: _unmeasured(case, name, rates, device) for name in loaders}
    try:
        reference = next(iter(loaders.values()))()
        asked = given(case, reference)
    except Exception as error:  # without the reference there is nothing to compare with
        return [_failed(row, error) for row in rows.values()]
    functions = {}
    for name, load in loaders.items():
        if rows[name].left_out:
            continue
        try:
            function = load()
            peak = _first_calls(device, partial(run, function, asked))
        except (
            Exception
        ) as error:  # whatever a broken kernel or a compiler raises: the others are still measured
            rows[name] = _failed(rows[name], error)
        else:
            functions[name] = function
            rows[name] = msgspec.structs.replace(rows[name], extra_peak_bytes=peak)
    seconds = stopwatch.interleaved(
        {name: partial(run, each, asked) for name, each in functions.items()}, rounds
    )
    errors = error_ratios(asked, functions, reference)
    right = {name: seconds[name] for name, ratio in errors.items() if ratio <= 1.0}
    return [_measured(row, right, errors.get(name)) for name, row in rows.items()]


def _unmeasured(case: Case, name: str, rates: Rates, device: torch.device) -> Row:
    floor_s, floor_of = floor(case, rates)
    return Row(
        op=case.op,
        shape=case.shape,
        dtype=dtype_name(case.dtype),
        implementation=name,
        floor_s=floor_s,
        floor_of=floor_of,
        left_out=LEFT_OUT.get((device.type, case.op, name), ""),
    )


def _measured(row: Row, seconds: Mapping[str, Spread], error_ratio: float | None) -> Row:
    """The row with its figures; one whose result was wrong gets none."""
    if error_ratio is None:
        return row
    if row.implementation not in seconds:
        wrong = f"wrong: its error is {error_ratio:.3g} times what is allowed"
        return msgspec.structs.replace(row, extra_peak_bytes=None, error_ratio=error_ratio, failure=wrong)
    own = seconds[row.implementation]
    return msgspec.structs.replace(
        row,
        seconds=own,
        floor_share=row.floor_s / own.median,
        times_eager=_times(seconds.get(REFERENCE), own),
        times_compiled=_times(seconds.get(COMPILED), own),
        error_ratio=error_ratio,
    )


def _failed(row: Row, error: Exception) -> Row:
    first_line = (str(error).strip() or "-").splitlines()[0][:200]
    return msgspec.structs.replace(row, failure=f"{type(error).__name__}: {first_line}")


def _times(baseline: Spread | None, own: Spread) -> float | None:
    return baseline.median / own.median if baseline else None


def _first_calls(device: torch.device, call: Callable[[], object]) -> int | None:
    """Compile and warm up; the extra peak memory, where the device's allocator tells it."""
    if device.type == "cuda":
        return extra_peak_bytes(device, call)
    call()
    return None


def floor(case: Case, rates: Rates) -> tuple[float, str]:
    """Least seconds at the measured rates, and of which of the two."""
    name = dtype_name(case.dtype)
    by_bytes = case.bytes / rates.copy_bytes_per_s
    by_flops = case.flops / rates.matmul_flops_per_s[name]
    return (by_flops, "FLOPs") if by_flops > by_bytes else (by_bytes, "bytes")


def with_memory(row: Row, shapes_name: str, dtype: torch.dtype, compiled: bool) -> Row:
    """The row with its memory on the CPU, measured in a process that did nothing else."""
    if row.seconds is None:
        return row
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        arguments = (row.op, row.implementation, shapes_name, dtype, compiled, torch.get_num_threads())
        return msgspec.structs.replace(row, extra_peak_bytes=pool.submit(memory_on_cpu, *arguments).result())


def memory_on_cpu(
    op: str, name: str, shapes_name: str, dtype: torch.dtype, compiled: bool, num_threads: int
) -> int | None:
    """Extra peak memory of an op's implementation on the CPU; for a fresh process."""
    torch.set_num_threads(num_threads)
    device = torch.device("cpu")
    asked = given(make_case(op, SHAPES[shapes_name], device, dtype, SEED), implementation(op, REFERENCE))
    return extra_peak_bytes(device, partial(run, _load(op, name, compiled), asked))
