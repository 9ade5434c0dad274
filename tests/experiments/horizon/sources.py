"""Synthetic texts whose statistics are known exactly."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BOS = 0


def with_bos(tokens: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint16]:
    """Documents of so many tokens each, <|bos|> before each; token ids move up by one."""
    rows = tokens[: tokens.size // length * length].reshape(-1, length) + 1
    return np.insert(rows, 0, BOS, axis=1).reshape(-1).astype(np.uint16)


def correlated(num: int, beta: float, seed: int, kinds: int = 4) -> npt.NDArray[np.int64]:
    """Tokens of `2 kinds` ids whose covariance at lag n has the top singular value of `top_value`.

    One bit of each is the sign of a Gaussian series of correlations n^-beta / 2, which is convex in n and so
    has a spectrum that is nowhere negative (Polya); the rest is uniform noise.
    """
    lags = np.arange(1, num // 2 + 1, dtype=float)
    half = np.concatenate(([1.0], 0.5 * lags**-beta))
    circle = np.concatenate((half, half[-2:0:-1]))
    spectrum = np.maximum(np.fft.fft(circle).real, 0.0)
    random = np.random.default_rng(seed)
    white = random.standard_normal(circle.size) + 1j * random.standard_normal(circle.size)
    series = np.fft.fft(np.sqrt(spectrum / circle.size) * white).real[:num]
    return (series > 0).astype(np.int64) + 2 * random.integers(0, kinds, num)


def top_value(lag: int, beta: float, kinds: int = 4) -> float:
    """arcsin(rho) / pi of the bit's two-by-two covariance, times the noise's 1 / kinds."""
    return math.asin(0.5 * lag**-beta) / math.pi / kinds


def markov(num: int, chain: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.int64]:
    """A Markov chain's states."""
    random = np.random.default_rng(seed)
    draws, ends = random.random(num), chain.cumsum(axis=1)
    states, state = np.zeros(num, np.int64), 0
    for i in range(num):
        state = int(np.searchsorted(ends[state], draws[i], side="right"))
        states[i] = min(state, len(chain) - 1)
        state = int(states[i])
    return states


def hazards(decay: float, longest: int = 20_000) -> npt.NDArray[np.float64]:
    """Chance of an event k tokens after the last, k = 1, 2, ..., where P(gap > k) = (k + 1)^-decay."""
    k = np.arange(1, longest + 1, dtype=float)
    return 1.0 - ((k + 1.0) / k) ** -decay


def renewals(num: int, decay: float, seed: int) -> npt.NDArray[np.int64]:
    """A series of zeros and, after gaps with a power-law tail, ones."""
    random = np.random.default_rng(seed)
    gaps = np.ceil(random.random(num) ** (-1.0 / decay) - 1.0).clip(1, num).astype(np.int64)
    places = np.cumsum(gaps)
    series = np.zeros(num, np.int64)
    series[places[places < num]] = 1
    return series


def renewal_entropies(decay: float, longest: int) -> list[float]:
    """H_n of the series in nats, exactly: what n tokens tell is when, if among them, the last event was."""
    hazard = hazards(decay)
    survival = np.concatenate(([1.0], np.cumprod(1.0 - hazard)))[:-1]  # P(gap >= k)
    age = survival / survival.sum()  # P(the last event was k tokens ago)
    each = -hazard * np.log(hazard) - (1 - hazard) * np.log1p(-hazard)
    found = []
    for n in range(longest + 1):
        beyond = age[n:].sum()
        rest = float((age[n:] * hazard[n:]).sum() / beyond)
        unknown = -rest * math.log(rest) - (1 - rest) * math.log1p(-rest)
        found.append(float((age[:n] * each[:n]).sum() + beyond * unknown))
    return found
