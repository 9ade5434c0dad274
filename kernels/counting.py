"""How often each implementation ran: what shows that a fused kernel was really used.

An opaque op counts every call. An op traced into a compiled graph counts once for each place in the graph,
when the graph is made: the graph itself runs no Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

_RAN: Counter[str] = Counter()


def ran(op: str, implementation: str) -> int:
    """Count one dispatch; called in the body of every implementation but the references. Returns 0."""
    _RAN[f"{op}/{implementation}"] += 1
    return 0


# What torch.compiler.assume_constant_result sets (torch 2.11 to 2.13): the tracer then calls `ran` itself and
# puts its result into the graph. The decorator would load the whole compiler at import.
ran._dynamo_marked_constant = True  # type: ignore[attr-defined]


def dispatches(since: Mapping[str, int] | None = None) -> dict[str, int]:
    """Dispatches of this process by "op/implementation": all so far, or those after an earlier look."""
    return dict(_RAN - Counter(since or {}))
