"""A run's trace: every logged step, and segments drawn by a nonce from the states noted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.records.events import GENESIS, Event, chained
from bench.records.trace import State, Step, Trace, trace_of


def events(*pairs: tuple[str, dict[str, object]]) -> list[Event]:
    """A log of these events."""
    return [chained(GENESIS, key, 0.0, dict(value)) for key, value in pairs]


def with_states(*starts: int) -> Trace:
    """States at each start, kept but for step 0, and at the step after it."""
    states = {}
    for start in starts:
        states[start] = State("a" * 64, "b" * 64 if start else "")
        states[start + 1] = State("c" * 64, "")
    return Trace({}, states)


def test_every_step_is_read_with_its_own_figures() -> None:
    logged = events(
        ("run_start", {"seed": 1}),
        ("state", {"step": 0, "weights_sha256": "w", "kept_sha256": ""}),
        (
            "step",
            {
                "step": 3,
                "losses": [5.0, 4.0, 3.0],
                "learning_rates": [0.5, 1.0, 0.75],
                "totals": [9, 9, 9.5],
                "sequences": [4, 8, 12],
            },
        ),
    )
    trace = trace_of(logged)
    assert trace.steps == {1: Step(5.0, 0.5, 9, 4), 2: Step(4.0, 1.0, 9, 8), 3: Step(3.0, 0.75, 9.5, 12)}
    assert trace.states == {0: State("w", "")}


def test_a_log_of_before_is_no_trace() -> None:
    old = events(("step", {"step": 1, "losses": [5.0], "official_s": 1.0, "learning_rate": 1.0}))
    assert trace_of(old) == Trace({}, {})
    assert Trace({}, {}).drawn("any", "0" * 64, 3) == []


def test_only_what_can_be_started_is_drawn() -> None:
    assert with_states(0, 10, 20).drawable() == [(0, 1), (10, 11), (20, 21)]
    lost = with_states(0, 10, 20)
    lost.states[10] = State("a" * 64, "")
    assert lost.drawable() == [(0, 1), (20, 21)]


@given(st.text(), st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 12))
def test_a_nonce_draws_the_same_distinct_segments(nonce: str, record: str, count: int) -> None:
    trace = with_states(*range(0, 80, 10))
    drawn = trace.drawn(nonce, record, count)
    assert drawn == trace.drawn(nonce, record, count) == sorted(set(drawn))
    assert len(drawn) == min(count, 8)
    assert set(drawn) <= set(trace.drawable())


def test_every_segment_is_drawn_by_some_nonce() -> None:
    trace = with_states(*range(0, 80, 10))
    seen = [trace.drawn(str(nonce), "0" * 64, 1)[0] for nonce in range(400)]
    counts = [seen.count(segment) for segment in trace.drawable()]
    assert min(counts) > 20  # of 50; 20 is 4.5 deviations off
