"""Several devices on paper: what the formula says, and what it refuses to guess."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import RecipeError
from bench.spec.parallel import LATENCY_S, Links, parallel_table, predict
from bench.spec.plan import Plan, make_plan
from bench.spec.submission import load
from tests.spec.recipes import H100X8, SUBMISSIONS, track

RUN6 = load(SUBMISSIONS / "run6-fixed.toml", SUBMISSIONS)
LINKS = Links(link_bytes_per_s=450e9, network_bytes_per_s=50e9, source="declared")


def planned(world_size: int) -> Plan:
    """nanochat's last run on so many H100."""
    return make_plan(RUN6, track("gpt2-8xh100"), H100X8, world_size)


def test_the_track_s_own_devices_are_no_question() -> None:
    assert planned(8).refusals == make_plan(RUN6, track("gpt2-8xh100"), H100X8).refusals
    assert any("this plan is for 16" in refusal for refusal in planned(16).refusals)


def test_one_device_sends_nothing() -> None:
    one = predict(planned(1), 1, LINKS)
    assert (one.moved_bytes, one.reduce_scatter_s, one.efficiency) == (0, 0.0, 1.0)
    assert one.step_s == one.compute_s
    assert "one device sends none" in parallel_table(one)


@given(st.sampled_from([2, 4, 8, 16, 32]), st.floats(1e9, 1e12), st.floats(1e9, 1e12))
def test_the_formula(world: int, link: float, network: float) -> None:
    """One step's sums, written out a second time."""
    plan, links = planned(world), Links(link_bytes_per_s=link, network_bytes_per_s=network, source="given")
    inside = predict(plan, 1, links)
    moved = 4 * sum(plan.parameters.values()) * (world - 1) // world
    seconds = moved / link + (world - 1) * LATENCY_S * len(plan.parameters)
    assert H100X8.flops_per_s is not None
    rate = H100X8.flops_per_s / H100X8.device_count
    assert inside.compute_s == pytest.approx(plan.batch_tokens * plan.flops_per_token / rate / world)
    assert inside.step_s == pytest.approx(inside.compute_s + 2 * seconds)
    assert inside.tokens_per_s * inside.step_s == pytest.approx(plan.batch_tokens)
    assert predict(plan, 2, links).bandwidth_bytes_per_s == pytest.approx(
        min(link, network) if world > 2 else network
    )


def test_embeddings_in_bfloat16_are_half_to_send() -> None:
    halved = make_plan(load(SUBMISSIONS / "head.toml", SUBMISSIONS), track("gpt2-8xh100"), H100X8, 2)
    tables = halved.parameters["wte"] + halved.parameters["value_embeds"]
    assert predict(halved, 1, LINKS).moved_bytes == predict(planned(2), 1, LINKS).moved_bytes - tables


def test_more_devices_are_faster_and_less_efficient() -> None:
    steps = [predict(planned(world), 1, LINKS) for world in (1, 2, 4, 8)]
    assert sorted(steps, key=lambda one: -one.step_s) == steps
    assert sorted(steps, key=lambda one: -one.efficiency) == steps


@pytest.mark.parametrize(
    ("nodes", "links", "word"),
    [
        (1, Links(link_bytes_per_s=None, network_bytes_per_s=1e9, source=""), "--link"),
        (2, Links(link_bytes_per_s=1e9, network_bytes_per_s=None, source=""), "--network"),
        (3, LINKS, "--nodes 3"),
    ],
)
def test_nothing_is_guessed(nodes: int, links: Links, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        predict(planned(8), nodes, links)


def test_a_device_of_no_rate_is_refused() -> None:
    plan = planned(8)
    unknown = msgspec.structs.replace(plan.machine, flops_per_s=None)
    with pytest.raises(RecipeError, match="no rate"):
        predict(msgspec.structs.replace(plan, machine=unknown), 1, LINKS)
