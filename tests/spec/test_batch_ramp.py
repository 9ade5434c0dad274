"""A growing batch: it never shrinks, sees every token of the horizon once, and is the recipe's at the end."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spec.batch_ramp import batch_ramp, constant, growing
from bench.spec.plan import Plan
from bench.spec.plan_table import plan_table
from bench.spec.recipe import BatchWarmup
from tests.spec.recipes import plan

GROWING = "[batch]\ntokens = 1048576\ndevice_sequences = 4\n[schedule.batch_warmup]\n"


@given(
    batches=st.integers(1, 300),
    full=st.integers(2, 40),
    start=st.floats(0.001, 1.0),
    share=st.floats(0.01, 1.0),
)
def test_what_holds_of_every_ramp(batches: int, full: int, start: float, share: float) -> None:
    total = batches * full
    over = max(round(share * total), 1)
    ramp, steps = growing(total, full, start, over)
    sizes = [ramp.micros(step) for step in range(steps)]
    assert sum(sizes) == total == ramp.micro_index(steps)
    assert sizes == sorted(sizes)
    assert [ramp.micro_index(step) for step in range(steps)] == [sum(sizes[:step]) for step in range(steps)]
    assert all(size < full for size in sizes[: ramp.growing_steps])
    assert all(size == full for size in sizes[ramp.growing_steps :])
    assert msgspec.json.decode(msgspec.json.encode(ramp), type=type(ramp)) == ramp


def test_the_batch_grows_evenly_with_the_tokens() -> None:
    """Eight micro-batches of each size in whole steps; three of forty are left over for a step of three."""
    ramp, steps = growing(total=40, full=4, start=0.25, over=24)
    assert [ramp.micros(step) for step in range(steps)] == [1] * 8 + [2] * 4 + [3] * (3 + 1) + [4] * 3


def test_without_a_warm_up_all_steps_are_alike() -> None:
    assert batch_ramp(BatchWarmup(), 50, 8, 512) == (constant(8), 50)
    assert constant(8).micro_index(7) == 56


def test_tokens_and_the_same_share_are_one() -> None:
    by_tokens, by_ratio = (batch_ramp(one, 50, 8, 512) for one in (
        BatchWarmup(tokens=25 * 8 * 512), BatchWarmup(ratio=0.5)
    ))  # fmt: skip
    assert by_tokens == by_ratio


@pytest.mark.parametrize("horizon", ["param_data_ratio = 12", "tokens = 3000000000", "iterations = 700"])
def test_the_run_keeps_its_tokens_and_takes_more_steps(horizon: str) -> None:
    def planned(warmup: str) -> Plan:
        return plan(f"[horizon]\n{horizon}\n{GROWING}{warmup}")

    without, growing_plan = planned(""), planned("ratio = 0.2\nstart = 0.1")
    assert not without.refusals + growing_plan.refusals
    assert growing_plan.tokens == without.tokens == growing_plan.tokens_before(growing_plan.iterations)
    assert growing_plan.iterations > without.iterations
    assert growing_plan.tokens_of(0) == 2 * 4 * 2048 * 8  # a tenth of 16 micro-batches on each of 8 devices
    assert growing_plan.tokens_of(growing_plan.iterations - 1) == growing_plan.batch_tokens
    assert growing_plan.sha256 != without.sha256
    assert growing_plan.rates == without.rates
    assert "batch warm-up" in plan_table(growing_plan)
    assert "batch warm-up" not in plan_table(without)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[horizon]\nseconds = 60\n[schedule.batch_warmup]\nratio = 0.1", "a horizon in seconds"),
        (
            "[batch]\ntokens = 65536\ndevice_sequences = 4\n[schedule.batch_warmup]\nratio = 0.1",
            "a step is 1 micro-batches",
        ),
        (GROWING + "tokens = 9000000000000", "more than the"),
    ],
)
def test_what_cannot_grow_is_refused(toml: str, told: str) -> None:
    refusals = [refusal for refusal in plan(toml).refusals if refusal.startswith("schedule.batch_warmup")]
    assert any(told in refusal for refusal in refusals)
