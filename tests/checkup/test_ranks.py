"""Processes that share a step: the prediction is the formula's, with what was measured put in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.checkup.ranks import _predicted, ranks_plan
from bench.spec.parallel import LATENCY_S
from bench.spec.workspace import Workspace
from tests import tiny

SPACE = Workspace(root=Path(__file__).resolve().parents[2], data=Path("nowhere"))
PLANS = {world: ranks_plan(SPACE, tiny.facts(), world) for world in (2, 4)}


@given(st.sampled_from([2, 4]), st.floats(1e-3, 1e3), st.floats(1e6, 1e12))
def test_a_step_is_the_lone_one_and_two_collectives(world: int, lone_s: float, rate: float) -> None:
    plan = PLANS[world]
    moved = 4 * plan.parameters_total * (world - 1) // world
    each_s = moved / rate + (world - 1) * LATENCY_S * len(plan.parameters)
    assert _predicted(plan, lone_s, rate).step_s == pytest.approx(lone_s + 2 * each_s)
