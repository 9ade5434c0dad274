"""Student's t from the standard library: the board is rebuilt where neither numpy nor scipy is installed."""

from __future__ import annotations

import math
from functools import cache

TINY = 1e-300
LEAST_CHANGE = 1e-14  # the continued fraction stops here; figures on the board have six digits
NUM_TERMS = 10_000


def tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's t; of the normal where `degrees` is infinite."""
    if math.isinf(degrees):
        return 0.5 * math.erfc(t / math.sqrt(2.0))
    half = 0.5 * incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))
    return half if t >= 0.0 else 1.0 - half


@cache
def quantile(upper: float, degrees: float) -> float:
    """The t with P(T > t) = `upper`, for `upper` of at most one half."""
    low, high = 0.0, 1.0
    while tail(high, degrees) > upper:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tail(middle, degrees) > upper else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (DLMF 8.17.22, by Lentz's method)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast below this
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    upper, lower = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or TINY)
    value = lower
    for m in range(1, NUM_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            lower = 1.0 / (1.0 + term * lower or TINY)
            upper = 1.0 + term / upper or TINY
            change = upper * lower
            value *= change
        if abs(change - 1.0) < LEAST_CHANGE:
            break
    return value
