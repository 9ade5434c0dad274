"""The local law L(D) = L_inf + A D^-alpha_D through short runs, and the tokens that a target takes.

Imports no torch. The exponent comes from the text; two or three whole short schedules give the constants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from bench.experiments.horizon.exponent import Exponent
from bench.experiments.time_to_target import HorizonRuns

FALLBACK_RATIO = 10.5  # nanochat's default tokens a scaling parameter when the plan was made
UNREACHABLE = 10.0  # times the fallback's tokens: what takes more is not inferred but wished
NEIGHBOUR = 1.05  # one conservative neighbour, no grid
LEAST_RUNS = 2

Status = Literal[
    "ok",
    "uncalibrated",
    "no exponent",
    "implausible exponent",
    "not improving",
    "below asymptote",
    "unreachable",
    "impossible law",
]


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """The law's constants for one exponent."""

    alpha: float
    asymptote: float
    amplitude: float
    r_squared: float  # 1 by construction from two horizons

    def at(self, tokens: float) -> float:
        """The score after so many tokens."""
        return float(self.asymptote + self.amplitude * tokens**-self.alpha)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one horizon."""

    tokens: int
    score: float
    num_runs: int


class Inference(msgspec.Struct, frozen=True, kw_only=True):
    """What the exponent and the runs say of a target; `chosen_ratio` falls back where `status` is not ok."""

    status: Status
    why: str
    target: float | None
    scaling_parameters: int | None
    points: list[Point]
    law: Law | None
    target_tokens: float | None
    target_tokens_interval: tuple[float | None, float | None] | None  # over alpha_D's; None: never reached
    ratio: float | None
    confirmation_ratio: float | None
    limit_tokens: float | None
    chosen_ratio: float
    decision: Literal["inferred", "fallback"]


def fit_law(points: Sequence[Point], alpha: float) -> Law:
    """The constants by least squares on D^-alpha; two horizons are met exactly."""
    x = np.array([point.tokens**-alpha for point in points])
    y = np.array([point.score for point in points])
    away = x - x.mean()
    amplitude = float(away @ y) / float(away @ away)
    asymptote = float(y.mean()) - amplitude * float(x.mean())
    residuals, total = y - asymptote - amplitude * x, float(((y - y.mean()) ** 2).sum())
    good = 1.0 - float(residuals @ residuals) / total if total > 0.0 else 0.0
    return Law(alpha=alpha, asymptote=asymptote, amplitude=amplitude, r_squared=good)


def tokens_to(law: Law, target: float) -> float | None:
    """Where the law meets the target; None where it never does."""
    gap = target - law.asymptote
    if gap <= 0.0 or law.amplitude <= 0.0:
        return None
    log_tokens = math.log(law.amplitude / gap) / law.alpha
    return math.exp(log_tokens) if log_tokens < 700.0 else None


def infer(
    found: Exponent | None,
    runs: Sequence[HorizonRuns],
    target: float | None,
    scaling_parameters: int | None,
    better: str = "lower",
) -> Inference:
    """The tokens that the target takes, or the plan's fallback with the reason."""
    sign = 1.0 if better == "lower" else -1.0
    points = [
        Point(tokens=each.tokens, score=each.score, num_runs=len(each.scores))
        for each in sorted(runs, key=lambda each: each.tokens)
    ]
    bare = _fallback(
        "no exponent", "the text's statistics give no exponent", points, target, scaling_parameters
    )
    if found is None:
        return bare
    if len(points) < LEAST_RUNS or target is None or not scaling_parameters:
        missing = f"{LEAST_RUNS} horizons, there are {len(points)}"
        missing = "a target" if target is None else missing
        missing = missing if scaling_parameters else "a recipe and a target"
        return msgspec.structs.replace(bare, status="uncalibrated", why=f"a calibration takes {missing}")
    flipped = [msgspec.structs.replace(point, score=sign * point.score) for point in points]
    law, goal = fit_law(flipped, found.value), sign * target
    shown = msgspec.structs.replace(law, asymptote=sign * law.asymptote, amplitude=sign * law.amplitude)
    limit = UNREACHABLE * FALLBACK_RATIO * scaling_parameters
    bare = msgspec.structs.replace(bare, law=shown, limit_tokens=limit)
    if not _improves(flipped) or law.amplitude <= 0.0:
        return msgspec.structs.replace(bare, status="not improving", why="longer runs are not better")
    tokens = tokens_to(law, goal)
    if tokens is None:
        why = f"the law ends at {shown.asymptote:.4f} and never meets {target:g}"
        return msgspec.structs.replace(bare, status="below asymptote", why=why)
    bare = msgspec.structs.replace(
        bare,
        target_tokens=tokens,
        target_tokens_interval=_interval(found, flipped, goal),
        ratio=tokens / scaling_parameters,
        confirmation_ratio=NEIGHBOUR * tokens / scaling_parameters,
    )
    return _judged(bare, found, tokens, limit)


def _judged(bare: Inference, found: Exponent, tokens: float, limit: float) -> Inference:
    """The gates on what was inferred; past them all, it is chosen."""
    if tokens > limit:
        why = f"{tokens:.3g} tokens are more than {UNREACHABLE:g} x {FALLBACK_RATIO} a parameter, {limit:.3g}"
        return msgspec.structs.replace(bare, status="unreachable", why=why)
    if not found.is_plausible:
        return msgspec.structs.replace(bare, status="implausible exponent", why=found.says[0])
    assert bare.ratio is not None
    assert bare.law is not None
    if bare.law.asymptote <= 0.0 < bare.law.amplitude:  # falls, to what no loss can be
        why = f"the law ends at {bare.law.asymptote:.4f}, below 0: the runs are too short for its exponent"
        return msgspec.structs.replace(bare, status="impossible law", why=why)
    return msgspec.structs.replace(bare, status="ok", why="", chosen_ratio=bare.ratio, decision="inferred")


def _fallback(
    status: Status, why: str, points: list[Point], target: float | None, scaling_parameters: int | None
) -> Inference:
    return Inference(
        status=status,
        why=why,
        target=target,
        scaling_parameters=scaling_parameters,
        points=points,
        law=None,
        target_tokens=None,
        target_tokens_interval=None,
        ratio=None,
        confirmation_ratio=None,
        limit_tokens=None,
        chosen_ratio=FALLBACK_RATIO,
        decision="fallback",
    )


def _improves(points: Sequence[Point]) -> bool:
    return all(after.score < before.score for before, after in itertools.pairwise(points))


def _interval(
    found: Exponent, points: Sequence[Point], goal: float
) -> tuple[float | None, float | None] | None:
    """Tokens at both ends of alpha_D's interval, fewest first."""
    if found.interval is None or found.interval[0] <= 0.0:
        return None
    ends = [tokens_to(fit_law(points, alpha), goal) for alpha in found.interval]
    ordered = sorted(ends, key=lambda tokens: math.inf if tokens is None else tokens)
    return ordered[0], ordered[1]
