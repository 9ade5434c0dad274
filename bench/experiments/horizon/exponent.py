"""The data-limited exponent alpha_D = gamma / (2 beta) of a text, interval and gate. Imports no torch.

Source: Cagnetta, Raventos, Ganguli and Wyart 2026 (arXiv 2602.07488): lag n is usable from P ~ n^(2 beta)
tokens on, and n tokens of context leave n^-gamma of loss, so that the loss falls as P^(-gamma / (2 beta)).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from bench.experiments.horizon.pairs import Floats
from bench.experiments.horizon.power_law import PowerLaw, interval_of

# The plan's gate, set before any text was measured.
LEAST_PLAUSIBLE, MOST_PLAUSIBLE = 0.2, 0.8


class Published(NamedTuple):
    """What the paper reports of one text, with its errors."""

    text: str
    beta: float
    beta_error: float
    gamma: float
    gamma_error: float
    alpha: float
    alpha_error: float


# Version 3, equations 11 to 16, BPE of 8,192 entries. WikiText is WikiText-103, over 6 lags of 1 to 32 and
# n = 1 to 3; its correlations rise again near lag 10, which the paper sets aside.
PAPER = (
    Published("TinyStories", 0.88, 0.06, 0.325, 0.003, 0.185, 0.013),
    Published("WikiText", 0.94, 0.16, 0.265, 0.016, 0.141, 0.025),
)


class Exponent(msgspec.Struct, frozen=True, kw_only=True):
    """alpha_D with its 95 % interval, and whether the gate lets it through."""

    beta: float
    gamma: float
    value: float
    interval: tuple[float, float] | None
    is_plausible: bool
    says: list[str]


def exponent(beta: PowerLaw, gamma: PowerLaw, beta_draws: Floats, gamma_draws: Floats) -> Exponent | None:
    """alpha_D of two laws; None where correlations or entropies do not fall at all."""
    if beta.exponent <= 0.0 or gamma.exponent <= 0.0:
        return None
    value = gamma.exponent / (2.0 * beta.exponent)
    num = min(beta_draws.size, gamma_draws.size)
    usable = beta_draws[:num] > 0.0
    ratios = gamma_draws[:num][usable] / (2.0 * beta_draws[:num][usable])
    return Exponent(
        beta=beta.exponent,
        gamma=gamma.exponent,
        value=value,
        interval=interval_of(ratios),
        is_plausible=LEAST_PLAUSIBLE <= value <= MOST_PLAUSIBLE,
        says=_sentences(value),
    )


def _sentences(value: float) -> list[str]:
    gate = f"the plan's gate of {LEAST_PLAUSIBLE} to {MOST_PLAUSIBLE}"
    said = [f"alpha_D = {value:.3f} {'passes' if _passes(value) else 'fails'} {gate}"]
    below = [each for each in PAPER if not _passes(each.alpha)]
    named = " and ".join(f"{each.text} {each.alpha} +- {each.alpha_error}" for each in below)
    said.append(f"the paper's own values, {named}, fall below that gate")
    if value < LEAST_PLAUSIBLE and any(value >= each.alpha - 2.0 * each.alpha_error for each in below):
        said.append(
            "so this one is as plausible as the paper's, and the gate's lower end is in doubt, not it"
        )
    return said


def _passes(value: float) -> bool:
    return LEAST_PLAUSIBLE <= value <= MOST_PLAUSIBLE
