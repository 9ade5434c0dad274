"""The kernel benchmark: floors from formulas, wrong results refused, a table of everything asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from kernels.bench import KernelTable, kernel_table, measure
from kernels.bench_cases import SHAPES, Case, Shapes, make_case
from kernels.bench_measure import LEAST_FLUSH_BYTES, Rates, Spread, Stopwatch, extra_peak_bytes
from kernels.bench_rows import COMPILED, LEFT_OUT, Row, floor, measure_case, memory_on_cpu
from kernels.bench_run import error_ratios, given, run
from kernels.choices import IMPLEMENTATIONS, REFERENCE, provable
from kernels.dispatch import implementation

CPU = torch.device("cpu")
TINY = Shapes("tiny", rows=2, tokens=32, depth=2, vocab=64, window=8, width=32, head_dim=16)
RATES = Rates(copy_bytes_per_s=1e9, matmul_flops_per_s={"bfloat16": 1e12, "float32": 1e11})
OPS = tuple(IMPLEMENTATIONS)


class InstantStopwatch(Stopwatch):
    """Runs what it times, and says that it took as long as it is told."""

    def __init__(self, seconds: float = 1e-3) -> None:
        self._seconds = seconds
        self.calls = 0

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        self.calls += 1
        return self._seconds


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates without the products and copies that measuring them takes."""
    monkeypatch.setattr("kernels.bench.measure_rates", lambda *_: RATES)


def tiny_case(op: str, dtype: torch.dtype = torch.float32) -> Case:
    return make_case(op, TINY, CPU, dtype, seed=3)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_case_that_its_reference_takes(op: str) -> None:
    reference = implementation(op, REFERENCE)
    asked = given(tiny_case(op), reference)
    assert error_ratios(asked, {"again": reference}, reference)["again"] <= 1.0


@pytest.mark.parametrize("op", OPS)
def test_floors_are_positive_follow_from_the_rates_and_grow_with_the_batch(op: str) -> None:
    case = tiny_case(op)
    assert floor(case, msgspec.structs.replace(RATES, copy_bytes_per_s=1.0)) == (case.bytes, "bytes")
    slow = dict.fromkeys(RATES.matmul_flops_per_s, 1e-3)
    by_flops = floor(case, msgspec.structs.replace(RATES, matmul_flops_per_s=slow))
    assert by_flops == ((case.flops / 1e-3, "FLOPs") if case.flops else floor(case, RATES))
    assert floor(case, RATES)[0] > 0
    larger = make_case(op, TINY._replace(rows=4, depth=4), CPU, torch.float32, seed=3)
    assert floor(larger, RATES)[0] > floor(case, RATES)[0]


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("embedding", "bigram_residual")])
def test_the_bytes_are_at_least_the_arguments(op: str) -> None:
    case = tiny_case(op)
    tensors = [each for part in case.arguments for each in (part if isinstance(part, list) else [part])]
    own = sum(each.nbytes for each in tensors if isinstance(each, Tensor) and each.ndim > 1)
    assert case.bytes >= own * (0.9 if op == "rotary_qk_norm" else 1.0)  # whose tables are not counted


@pytest.mark.parametrize(
    ("op", "flops"),
    [
        ("linear_cross_entropy", 3 * 2 * 64 * 32 * 64),
        ("relu_squared_mlp", 6 * 2 * 64 * 32 * 128),
        ("fp8_linear", 3 * 2 * 64 * 32 * 128),
        ("attention", 7 * 2 * 16 * 2 * 2 * (sum(range(1, 9)) + 24 * 9)),
        ("adamw", 0),
    ],
)
def test_flops_count_every_product_once(op: str, flops: int) -> None:
    assert tiny_case(op).flops == flops


def _scaled(function: Callable[..., Any], factor: float, *arguments: Any, **keywords: Any) -> Any:
    got = function(*arguments, **keywords)
    if got is None:  # a step in place
        target = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        target.mul_(factor)
        return None
    return tuple(each * factor for each in got) if isinstance(got, tuple) else got * factor


def _without_the_last_row(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    got = function(*arguments, **keywords)
    mask = torch.ones_like(got)
    mask[-1:] = 0.0
    return got * mask


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_implementation_gets_no_figure(op: str) -> None:
    reference = implementation(op, REFERENCE)
    loaders = {REFERENCE: lambda: reference, "wrong": lambda: partial(_scaled, reference, 1.1)}
    good, wrong = measure_case(tiny_case(op), CPU, loaders, 2, InstantStopwatch(), RATES)
    assert good.seconds == Spread(1e-3, 1e-3, 1e-3)
    assert not good.failure
    assert wrong.seconds is None
    assert wrong.times_eager is None
    assert wrong.failure.startswith("wrong: ")


@pytest.mark.parametrize("op", ["embedding", "attention", "relu_squared_mlp", "bigram_residual"])
def test_one_missing_row_is_seen(op: str) -> None:
    reference = implementation(op, REFERENCE)
    asked = given(tiny_case(op, torch.bfloat16), reference)
    assert error_ratios(asked, {"cut": partial(_without_the_last_row, reference)}, reference)["cut"] > 1.0


def test_a_missing_gradient_is_seen() -> None:
    reference = implementation("linear_cross_entropy", REFERENCE)

    def detached(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Any:
        return reference(hidden, weight.detach() + 0 * weight, targets, softcap)

    asked = given(tiny_case("linear_cross_entropy"), reference)
    assert error_ratios(asked, {"detached": detached}, reference)["detached"] > 1.0


def test_a_numbers_gradient_is_allowed_the_roundings_of_its_sum() -> None:
    """Its terms cancel: where eager's sum happens to be near the truth, another order's is not wrong."""
    reference = implementation("mix_rms_norm", REFERENCE)
    asked = given(tiny_case("mix_rms_norm", torch.float32), reference)
    terms = max(leaf.numel() for leaf in asked.case.arguments)

    def nudged(by: float) -> Callable[..., Any]:
        def function(x: Tensor, other: Tensor, x_scale: Tensor, other_scale: Tensor) -> Any:
            mixed, normed = reference(x, other, x_scale, other_scale)
            return mixed + by * (x_scale - x_scale.detach()), normed

        return function

    upstream = float(asked.upstreams[0].sum())  # what a nudge is multiplied by on its way to the gradient
    by = 0.5 * torch.finfo(torch.float32).eps * terms / abs(upstream)
    ratios = error_ratios(asked, {"rounding": nudged(by), "wrong": nudged(100 * by)}, reference)
    assert ratios["rounding"] <= 1.0 < ratios["wrong"]


def test_not_a_number_is_an_error() -> None:
    reference = implementation("mix_rms_norm", REFERENCE)
    asked = given(tiny_case("mix_rms_norm"), reference)
    assert error_ratios(asked, {"nan": partial(_scaled, reference, float("nan"))}, reference)["nan"] > 1.0


def test_a_step_is_compared_on_what_it_changed_and_repeated_from_the_same_start() -> None:
    reference = implementation("adamw", REFERENCE)
    asked = given(tiny_case("adamw"), reference)
    before = asked.case.arguments[0][0].clone()

    def forgets_moments(*arguments: Any, **keywords: Any) -> None:
        copies = [each.clone() for each in arguments[2]]
        reference(arguments[0], arguments[1], copies, *arguments[3:], **keywords)

    ratios = error_ratios(asked, {"same": reference, "forgets": forgets_moments}, reference)
    assert ratios["same"] <= 1.0 < ratios["forgets"]
    assert torch.equal(asked.case.arguments[0][0], before)


def test_one_that_raises_leaves_the_others_their_figures() -> None:
    reference = implementation("relu_squared_mlp", REFERENCE)

    def broken() -> Callable[..., Any]:
        raise ImportError("no such kernel\nat all")

    loaders = {REFERENCE: lambda: reference, "broken": broken, "again": lambda: reference}
    rows = measure_case(tiny_case("relu_squared_mlp"), CPU, loaders, 3, InstantStopwatch(), RATES)
    assert [row.failure for row in rows] == ["", "ImportError: no such kernel", ""]
    assert [row.times_eager for row in rows] == [1.0, None, 1.0]


def test_rounds_are_interleaved_and_none_is_always_first() -> None:
    order: list[str] = []
    watch = InstantStopwatch()
    watch.interleaved({name: partial(order.append, name) for name in "abc"}, rounds=3)
    assert order == list("abcbcacab")


def test_caches_are_cold() -> None:
    stopwatch = Stopwatch(CPU)
    assert stopwatch._flush.nbytes >= LEAST_FLUSH_BYTES
    stopwatch.seconds(lambda: None)
    assert bool((stopwatch._flush == 1).all())


@pytest.mark.usefixtures("quick")
def test_the_table_names_everything_that_was_asked_for() -> None:
    told: list[KernelTable] = []
    ops = ("mix_rms_norm", "fp8_linear", "adamw", "relu_squared_mlp")
    table = measure(
        CPU, ops, TINY, 1, "a CPU", {"torch": "2.x", "numpy": "1"}, compiled=False, on_op=told.append
    )
    asked = {(op, name) for op in ops for name in (REFERENCE, *provable(op, "cpu"))}
    assert {(row.op, row.implementation) for row in table.rows} == asked
    assert [len({row.op for row in each.rows}) for each in told] == [1, 2, 3, 4]
    assert table.versions == {"torch": "2.x"}
    assert not table.failures
    assert {(row.op, row.implementation) for row in table.rows if row.left_out} == {
        (op, name) for _, op, name in LEFT_OUT
    }
    assert msgspec.json.decode(msgspec.json.encode(table), type=KernelTable) == table
    text = kernel_table(table)
    assert all(f"{op}: " in text for op in ops)
    assert "left out: fp8_linear scaled-mm" in text


@pytest.mark.usefixtures("quick")
def test_what_the_time_does_not_suffice_for_is_named() -> None:
    table = measure(CPU, OPS, TINY, 1, "a CPU", {}, compiled=False, budget_s=-1.0)
    assert table.not_reached == OPS
    assert f"not reached in time: {OPS[0]}" in kernel_table(table)


def test_extra_memory_is_what_a_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = iter([100, 350])
    monkeypatch.setattr("kernels.bench_measure._status_bytes", lambda field: next(resident))
    assert extra_peak_bytes(CPU, lambda: None) in (250, None)  # None off Linux


@pytest.mark.slow
def test_the_whole_logits_of_the_reference_show_in_its_memory() -> None:
    arguments = (SHAPES["d4"].name, torch.bfloat16, False, 1)
    whole = memory_on_cpu("linear_cross_entropy", REFERENCE, *arguments)
    chunked = memory_on_cpu("linear_cross_entropy", "chunked", *arguments)
    if whole is None or chunked is None:
        pytest.skip("no peak of resident memory on this system")
    logits_bytes = SHAPES["d4"].rows * SHAPES["d4"].tokens * SHAPES["d4"].vocab * 4
    assert whole > 2 * logits_bytes
    assert chunked < logits_bytes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_the_compiled_reference_is_a_baseline() -> None:
    rows = measure(CPU, ["mix_rms_norm"], TINY, 2, "a CPU", {}, dtype=torch.float32).rows
    assert [row.implementation for row in rows] == [REFERENCE, COMPILED]
    assert all(isinstance(row, Row) and row.seconds and row.times_compiled for row in rows)


def test_a_run_gives_outputs_and_gradients() -> None:
    asked = given(tiny_case("mix_rms_norm"), implementation("mix_rms_norm", REFERENCE))
    got = run(implementation("mix_rms_norm", REFERENCE), asked)
    assert [list(each.shape) for each in got] == [[64, 32]] * 2 + [[64, 32]] * 2 + [[]] * 2
