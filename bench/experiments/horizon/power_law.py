"""Power laws y = a x^-b through measured points: windows, goodness, and intervals by resampling.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from bench.experiments.horizon.pairs import Floats

NUM_DRAWS = 1000
LEAST_POINTS = 3
MAX_FLOOR_SHARE = 0.99
NUM_FLOORS = 199


class PowerLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A straight line through logarithms over one window; `exponent` is positive where y falls."""

    exponent: float
    amplitude: float  # y at x = 1
    r_squared: float
    standard_error: float  # of the exponent, from the points' scatter about the line
    window: tuple[float, float]
    num_points: int
    interval: tuple[float, float] | None = None  # 95 %, where draws were given

    def at(self, x: float) -> float:
        """The law's value."""
        return float(self.amplitude * x**-self.exponent)


def fit(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of ln y on ln x; a window of two points has no scatter to tell."""
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    slope, spread, intercept, good = _line(log_x, log_y)
    return PowerLaw(
        exponent=-slope,
        amplitude=math.exp(intercept),
        r_squared=good,
        standard_error=spread,
        window=(float(min(x)), float(max(x))),
        num_points=len(x),
    )


def _line(x: Floats, y: Floats) -> tuple[float, float, float, float]:
    """(slope, its standard error, intercept, R squared)."""
    away = x - x.mean()
    squares = float(away @ away)
    slope = float(away @ y) / squares
    intercept = float(y.mean()) - slope * float(x.mean())
    residuals = y - intercept - slope * x
    total = float(((y - y.mean()) ** 2).sum())
    good = 1.0 - float(residuals @ residuals) / total if total > 0.0 else 0.0
    dof = x.size - 2
    spread = math.sqrt(float(residuals @ residuals) / dof / squares) if dof > 0 else 0.0
    return slope, spread, intercept, good


def draws_of(x: Sequence[float], drawn: Floats, seed: int) -> Floats:
    """The exponent of each resampled curve, [draws, points], moved by the scatter about its own line.

    Resampled text alone knows nothing of a curve that is no power law; the scatter about the line does.
    """
    assert len(x) >= LEAST_POINTS
    random = np.random.default_rng(seed)
    log_x = np.log(np.asarray(x, float))
    log_y = np.log(drawn[(drawn > 0.0).all(axis=1)])
    away = log_x - log_x.mean()
    squares = float(away @ away)
    slopes = log_y @ away / squares
    residuals = log_y - log_y.mean(axis=1, keepdims=True) - slopes[:, None] * away
    spreads = np.sqrt((residuals**2).sum(axis=1) / (log_x.size - 2) / squares)
    return np.asarray(spreads * random.standard_normal(slopes.size) - slopes)


def interval_of(draws: Floats) -> tuple[float, float] | None:
    """The middle 95 % of the draws; None where most of them had no exponent at all."""
    if draws.size < NUM_DRAWS // 2:
        return None
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def windows(
    x: Sequence[float], y: Sequence[float], cuts: Sequence[tuple[float, float]]
) -> tuple[PowerLaw, ...]:
    """A law for each window [low, high] that holds at least three points, once for equal points."""
    found: dict[tuple[float, float], PowerLaw] = {}
    for low, high in cuts:
        inside = [(a, b) for a, b in zip(x, y, strict=True) if low <= a <= high and b > 0.0]
        if len(inside) >= LEAST_POINTS:
            law = fit(*zip(*inside, strict=True))
            found.setdefault(law.window, law)
    return tuple(found.values())


def best_floor(x: Sequence[float], y: Sequence[float]) -> tuple[float, PowerLaw] | None:
    """The constant whose removal makes the points straightest, and the law of the rest.

    None below four points, which a law with a constant, three numbers, would fit as well as noise.
    """
    if len(x) <= LEAST_POINTS:
        return None
    least = min(y)
    floors = [least * MAX_FLOOR_SHARE * k / NUM_FLOORS for k in range(NUM_FLOORS + 1)]
    laws = [(floor, fit(x, [value - floor for value in y])) for floor in floors]
    return max(laws, key=lambda each: each[1].r_squared)


def block_weights(num_blocks: int, seed: int, num_draws: int = NUM_DRAWS) -> Floats:
    """How often each block is drawn, with replacement, in each draw; [draws, blocks]."""
    random = np.random.default_rng(seed)
    return random.multinomial(num_blocks, np.full(num_blocks, 1.0 / num_blocks), num_draws).astype(np.float64)
