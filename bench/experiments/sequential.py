"""Tests that may be looked at after every run: Wald's SPRT and an e-process. Imports no torch.

Sources: Wald 1945; mixtures as e-processes: Howard, Ramdas, McAuliffe and Sekhon 2021 (arXiv 1810.08240).
Gains count up: pass the difference in the direction that is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bench.experiments.distributions import normal_cdf

ALPHA = 0.01
BETA = 0.10
CAP = 10  # declared before the first run: what is not accepted by then is rejected
TAU = 1.5  # the e-process' prior on the gain, in standard deviations of one run


class Verdict(NamedTuple):
    """What the runs so far say, after how many of them it was said, and the statistic then."""

    decision: Literal["accept", "reject", "continue"]
    num_runs: int
    statistic: float
    is_capped: bool  # rejected only because the cap was reached


def sprt_bounds(alpha: float = ALPHA, beta: float = BETA) -> tuple[float, float]:
    """(reject at or below, accept at or above) of the log likelihood ratio."""
    return math.log(beta / (1.0 - alpha)), math.log((1.0 - beta) / alpha)


def sprt_increment(gain: float, effect: float, sigma: float) -> float:
    """What one run adds to the log likelihood ratio of a gain of `effect` against none."""
    return effect / sigma**2 * (gain - effect / 2.0)


def sprt(
    gains: Sequence[float],
    *,
    effect: float,
    sigma: float,
    alpha: float = ALPHA,
    beta: float = BETA,
    cap: int = CAP,
) -> Verdict:
    """No gain against a gain of `effect`, sigma known; runs after the decision are not looked at."""
    assert min(effect, sigma, cap) > 0, (effect, sigma, cap)
    reject, accept = sprt_bounds(alpha, beta)
    ratio = 0.0
    for num_runs, gain in enumerate(gains[:cap], 1):
        ratio += sprt_increment(gain, effect, sigma)
        if ratio >= accept:
            return Verdict("accept", num_runs, ratio, False)
        if ratio <= reject:
            return Verdict("reject", num_runs, ratio, False)
    if len(gains) >= cap:
        return Verdict("reject", cap, ratio, True)
    return Verdict("continue", len(gains), ratio, False)


def log_e_value(total: float, num_runs: int, tau: float = TAU) -> float:
    """ln E_n = ln(2 exp(S^2 / 2V) Phi(S / sqrt V) / sqrt(V tau^2)), V = n + tau^-2, S in units of sigma.

    A half-normal mixture over gains: whenever one stops, P(E >= 1/alpha) <= alpha without a gain.
    """
    v = num_runs + tau**-2
    z = total / math.sqrt(v)
    # Far below 0 the two factors are exp(z^2/2) x Phi(z) -> 1 / (|z| sqrt(2 pi)) (Mills' ratio).
    if z < -30.0:
        log_product = -math.log(-z * math.sqrt(2.0 * math.pi))
    else:
        log_product = z * z / 2.0 + math.log(normal_cdf(z))
    return math.log(2.0) + log_product - 0.5 * math.log(v * tau**2)


def e_boundary(num_runs: int, alpha: float = ALPHA, tau: float = TAU) -> float:
    """The sum of gains, in units of sigma, from which E_n accepts; E_n grows with it."""
    low, high = 0.0, 1.0
    while log_e_value(high, num_runs, tau) < -math.log(alpha):
        low, high = high, 2.0 * high
    while high - low > 1e-10 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log_e_value(middle, num_runs, tau) < -math.log(alpha) else (low, middle)
    return high


def e_process(
    gains: Sequence[float], *, sigma: float, alpha: float = ALPHA, tau: float = TAU, cap: int = CAP
) -> Verdict:
    """Accept as soon as E_n reaches 1/alpha; at the cap reject what was not accepted."""
    assert min(sigma, cap) > 0, (sigma, cap)
    total, log_e = 0.0, 0.0
    for num_runs, gain in enumerate(gains[:cap], 1):
        total += gain / sigma
        log_e = log_e_value(total, num_runs, tau)
        if log_e >= -math.log(alpha):
            return Verdict("accept", num_runs, log_e, False)
    if len(gains) >= cap:
        return Verdict("reject", cap, log_e, True)
    return Verdict("continue", len(gains), log_e, False)
