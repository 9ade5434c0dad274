"""Segments of a run that a replay may draw, declared before its first step."""

from __future__ import annotations

from typing import NamedTuple

NUM_SEGMENTS = 3
# Of the run's steps, each: replaying all three costs 3.75 % of the training.
SHARE = 1 / 80


class Segment(NamedTuple):
    """Steps after `start`, up to and including `stop`; the first step of a run is 1."""

    start: int
    stop: int


def segments(iterations: int) -> list[Segment]:
    """Equally spaced segments of a run of so many steps; the first starts from the seed alone."""
    length = max(1, round(iterations * SHARE))
    starts = sorted({iterations * i // NUM_SEGMENTS for i in range(NUM_SEGMENTS)})
    return [Segment(start, start + length) for start in starts if start + length <= iterations]
