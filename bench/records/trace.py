"""What a run's event log says of each step, and where a replay may start and stop. Imports no torch."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from bench.records.events import Event


class Step(NamedTuple):
    """One step as logged: `total` is the length of the run that the schedules assumed."""

    loss: float
    learning_rate: float
    total: float
    sequences: int  # consumed since the start of the run


class State(NamedTuple):
    """The run between two steps; `kept_sha256` is "" where the state itself was not kept."""

    weights_sha256: str
    kept_sha256: str


class Drawable(NamedTuple):
    """A segment of the log: steps after `start`, up to and including `stop`."""

    start: int
    stop: int


class Trace(NamedTuple):
    """By step; the first is 1."""

    steps: dict[int, Step]
    states: dict[int, State]

    def drawable(self) -> list[Drawable]:
        """Segments from a state that can be had again, by its seed or its file, to the next one noted."""
        noted = sorted(self.states)
        return [
            Drawable(start, stop)
            for start, stop in itertools.pairwise(noted)
            if start == 0 or self.states[start].kept_sha256
        ]

    def drawn(self, nonce: str, record_sha256: str, count: int) -> list[Drawable]:
        """`count` segments that nobody knows before the nonce is known, in order; all if there are fewer."""

        def lot(segment: Drawable) -> bytes:
            return hmac.digest(nonce.encode(), f"{record_sha256}:{segment.start}".encode(), "sha256")

        return sorted(sorted(self.drawable(), key=lot)[:count])


def trace_of(events: Iterable[Event]) -> Trace:
    """The trace of a log; steps logged before logs told each step's rate are not part of it."""
    trace = Trace({}, {})
    for event in events:
        value = event.value
        if event.key == "state":
            trace.states[value["step"]] = State(value["weights_sha256"], value["kept_sha256"])
        elif event.key == "step" and "learning_rates" in value:
            first = value["step"] - len(value["losses"]) + 1
            columns = (value["losses"], value["learning_rates"], value["totals"], value["sequences"])
            for offset, columns_of_step in enumerate(zip(*columns, strict=True)):
                trace.steps[first + offset] = Step(*columns_of_step)
    return trace
