"""The schedules: nanochat's formulas, stated here as piecewise functions, and what must hold of any shape."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.schedule import ScheduleConfig, learning_rate_scale, momentum, scales_at, weight_decay_scale

RUN6 = ScheduleConfig(
    warmup_steps=40,
    warmdown_ratio=0.65,
    warmdown_shape="linear",
    final_lr_fraction=0.05,
    momentum_start=0.85,
    momentum_peak=0.97,
    momentum_end=0.90,
    momentum_warmup_steps=400,
    weight_decay_shape="cosine",
)
SHAPES = ("linear", "cosine", "sqrt")


@given(total=st.integers(1, 20_000), share=st.floats(0.0, 1.0), ratio=st.floats(0.0, 1.0))
def test_run_6_is_nanochats(total: int, share: float, ratio: float) -> None:
    step = int(share * total)
    config = msgspec.structs.replace(RUN6, warmdown_ratio=ratio)
    left, decaying = total - step, round(ratio * total)
    after = 1.0 if left >= decaying else 0.05 + 0.95 * left / decaying
    rate = (step + 1) / 40 if step < 40 else after
    if step < 400:
        beta = 0.85 + 0.12 * step / 400
    else:
        beta = 0.97 if left >= decaying else 0.97 - 0.07 * (decaying - left) / decaying
    decay = math.cos(math.pi * step / total / 2) ** 2
    assert learning_rate_scale(step, total, config) == pytest.approx(rate)
    assert momentum(step, total, config) == pytest.approx(beta)
    assert weight_decay_scale(step, total, config) == pytest.approx(decay, abs=1e-12)
    scales = scales_at(step, total, config)
    assert (scales.learning_rate, scales.momentum, scales.weight_decay) == pytest.approx(
        (rate, beta, decay), abs=1e-12
    )


@given(total=st.integers(100, 20_000), ratio=st.floats(0.0, 0.5))
def test_a_warm_up_by_ratio_is_one_of_that_many_steps(total: int, ratio: float) -> None:
    by_ratio = msgspec.structs.replace(RUN6, warmup_ratio=ratio)
    by_steps = msgspec.structs.replace(RUN6, warmup_steps=round(ratio * total))
    for step in range(0, total, max(total // 50, 1)):
        assert learning_rate_scale(step, total, by_ratio) == learning_rate_scale(step, total, by_steps)


@pytest.mark.parametrize(
    ("shape", "quarters"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2), 0.0]),
        ("sqrt", [1.0, 0.5, 1.0 - math.sqrt(0.5), 1.0 - math.sqrt(0.75), 0.0]),
    ],
)
def test_shapes_of_the_warmdown(shape: str, quarters: list[float]) -> None:
    config = msgspec.structs.replace(RUN6, warmdown_shape=shape, warmdown_ratio=0.4, final_lr_fraction=0.2)
    rates = [learning_rate_scale(step, 1000, config) for step in (600, 700, 800, 900, 1000)]
    assert rates == pytest.approx([0.2 + 0.8 * quarter for quarter in quarters])


@given(
    total=st.integers(100, 500),
    shape=st.sampled_from(SHAPES),
    ratio=st.floats(0.05, 0.6),
    warmup=st.integers(0, 40),
    final=st.floats(0.0, 1.0),
    decay=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_nothing_jumps_or_leaves_its_bounds(
    total: int, shape: str, ratio: float, warmup: int, final: float, decay: str
) -> None:
    """Where the warm-up ends before the warmdown starts, rates rise to 1, stay, and fall, by small steps."""
    config = msgspec.structs.replace(
        RUN6,
        warmup_steps=warmup,
        warmdown_ratio=ratio,
        warmdown_shape=shape,
        final_lr_fraction=final,
        momentum_warmup_steps=warmup,
        weight_decay_shape=decay,
    )
    scales = [scales_at(step, total, config) for step in range(total + 1)]
    rates = [s.learning_rate for s in scales]
    peak = rates.index(max(rates))
    assert rates[peak] == 1.0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) >= min(final, 1.0 / max(warmup, 1)) - 1e-12
    assert rates[-1] == pytest.approx(final)
    warmdown_steps = round(ratio * total)
    steepest = {"linear": 1.0 / warmdown_steps, "cosine": 1.6 / warmdown_steps, "sqrt": warmdown_steps**-0.5}[
        shape
    ]
    for before, after in pairwise(rates):
        assert abs(after - before) <= max(steepest, 1.0 / max(warmup, 1)) + 1e-9
    betas = [s.momentum for s in scales]
    assert min(betas) >= 0.85 - 1e-12
    assert max(betas) <= 0.97 + 1e-12
    assert betas[-1] == pytest.approx(0.90)
    assert betas[0] == pytest.approx(0.85 if warmup else 0.97)
    decays = [s.weight_decay for s in scales]
    assert decays[0] == 1.0
    assert decays == sorted(decays, reverse=True)
    assert decays[-1] == pytest.approx(1.0 if decay == "constant" else 0.0)


@given(step=st.integers(0, 200), total=st.floats(1.0, 100.0), shape=st.sampled_from(SHAPES))
def test_a_run_longer_than_estimated_stays_at_the_end(step: int, total: float, shape: str) -> None:
    config = msgspec.structs.replace(RUN6, warmup_steps=0, momentum_warmup_steps=0, warmdown_shape=shape)
    if step >= total:
        assert scales_at(step, total, config) == scales_at(1000, total, config)
        assert learning_rate_scale(step, total, config) == pytest.approx(0.05 if round(0.65 * total) else 1.0)
        assert weight_decay_scale(step, total, config) == pytest.approx(0.0)
