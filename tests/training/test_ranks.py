"""A lone rank tells itself; a wrong number of processes is refused before anything is done."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError, Interrupted, PlanRefused
from bench.training.launch import Place, _code_of, _config
from bench.training.ranks import ALONE, Ranks, joined


@given(st.floats(allow_nan=False), st.integers(0, 2**62))
def test_a_lone_rank_hears_itself(number: float, count: int) -> None:
    assert ALONE.is_first
    assert ALONE.agreed(number) == number
    assert ALONE.share({"a": number}) == {"a": number}
    assert ALONE.largest(count) == count
    assert ALONE.totals(number, 1.0) == [number, 1.0]
    values = torch.tensor([number])
    assert ALONE.mean(values) is values
    ALONE.require_alike("a", "code")
    assert ALONE.settings() == {}
    with ALONE.in_turn(), joined({}, 1) as ranks:
        assert ranks is ALONE


def test_a_rank_of_other_code_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    second = ALONE._replace(rank=1, size=2)
    monkeypatch.setattr(Ranks, "share", lambda _, value: "the first one's")
    with pytest.raises(DataError, match="rank 1 has other code than the first rank"):
        second.require_alike("its own", "code")


@pytest.mark.parametrize(("started", "wanted"), [("1", 2), ("4", 8), ("2", 1)])
def test_a_wrong_number_of_processes_is_refused(started: str, wanted: int) -> None:
    refused = joined({"WORLD_SIZE": started}, wanted)
    with pytest.raises(PlanRefused, match=f"{wanted} device.*{started} process") as caught, refused:
        raise AssertionError("joined")
    assert "bench launch" in caught.value.hint


@pytest.mark.parametrize(
    ("world_size", "place", "word"),
    [
        (8, Place(nodes=3, rendezvous="a:1"), "dealt"),
        (8, Place(nodes=2), "meet"),
        (8, Place(nodes=2, node_rank=2, rendezvous="a:1"), "--node-rank"),
    ],
)
def test_ranks_that_cannot_be_dealt_are_refused(world_size: int, place: Place, word: str) -> None:
    with pytest.raises(PlanRefused, match=word):
        _config(world_size, place)


@given(
    st.dictionaries(st.integers(0, 7), st.sampled_from([-9, -15, 9]), max_size=8),
    st.dictionaries(st.integers(0, 7), st.sampled_from([2, 3, 5, 6, 7]), min_size=1, max_size=2),
)
def test_a_ranks_own_error_goes_before_those_that_lost_it(lost: dict[int, int], own: dict[int, int]) -> None:
    assert _code_of(lost | own) == own[min(own)]


@given(
    st.dictionaries(st.integers(0, 7), st.just(-15), max_size=8),
    st.dictionaries(st.integers(0, 7), st.sampled_from([-9, -11]), min_size=1, max_size=8),
)
def test_a_killed_rank_interrupts_the_run(ended: dict[int, int], killed: dict[int, int]) -> None:
    """Those that the agent ended for its sake are no cause."""
    with pytest.raises(Interrupted, match=f"rank {min(killed)} was killed by SIG(KILL|SEGV)"):
        _code_of(ended | killed | {8: Interrupted.exit_code})
