"""Normal, chi-squared, Fisher's F and Student's t: a comparison needs no numerical library."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

NORMAL = NormalDist()
MAX_TERMS = 500
TINY = 1e-300


def normal_cdf(z: float) -> float:
    """P(Z <= z); by erfc, so that the lower tail keeps its digits."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def chi_squared_tail(value: float, dof: int) -> float:
    """P(X >= value) of a chi-squared X; Q(a + 1, x) = Q(a, x) + x^a e^-x / Gamma(a + 1), a from 1/2 or 1."""
    x, a = value / 2.0, 1.0 if dof % 2 == 0 else 0.5
    tail = math.exp(-x) if dof % 2 == 0 else math.erfc(math.sqrt(x))
    while a < dof / 2.0 and x > 0.0:
        tail += math.exp(a * math.log(x) - x - math.lgamma(a + 1.0))
        a += 1.0
    return min(tail, 1.0)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1.

    Continued fraction by Lentz's method (Press et al., Numerical Recipes, section 6.4), on the side where it
    converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _away_from_zero(number: float) -> float:
    return number if abs(number) > TINY else TINY


def t_cdf(t: float, dof: float) -> float:
    """P(T <= t) of Student's t; the normal's for infinitely many degrees of freedom."""
    assert dof > 0, dof
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    if dof > 1e6:  # 1 / (4 dof) is the relative difference of the two: below 1e-6
        return normal_cdf(t)
    square = t * t
    if square < dof:  # from the middle, or small t would be lost against dof
        return 0.5 + math.copysign(0.5 * incomplete_beta(0.5, dof / 2.0, square / (dof + square)), t)
    tail = 0.5 * incomplete_beta(dof / 2.0, 0.5, dof / (dof + square))
    return 1.0 - tail if t > 0 else tail


def f_tail(value: float, dof: float, other_dof: float) -> float:
    """P(F >= value) of Fisher's F, the ratio of two variances on these degrees of freedom."""
    if math.isinf(value):
        return 0.0
    return incomplete_beta(other_dof / 2.0, dof / 2.0, other_dof / (other_dof + dof * value))


@cache
def t_quantile(p: float, dof: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1; bisected, for the distribution function is monotone."""
    assert 0.0 < p < 1.0, p
    if dof > 1e6:
        return NORMAL.inv_cdf(p)
    if p < 0.5:
        return -t_quantile(1.0 - p, dof)
    low, high = 0.0, 1.0
    while t_cdf(high, dof) < p:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * max(high, 1.0):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return 0.5 * (low + high)
