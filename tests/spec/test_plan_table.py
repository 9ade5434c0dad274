"""The plan as people read it."""

from __future__ import annotations

import msgspec

from bench.spec.plan import make_plan
from bench.spec.plan_table import plan_table
from bench.spec.submission import load
from tests.spec.recipes import CPU, H100X8, SUBMISSIONS, plan, track


def test_an_eager_plan_says_why() -> None:
    assert "compiled" in plan_table(plan(""))
    assert "eager: the recipe asks for it" in plan_table(plan("[compile]\nenabled = false"))
    mac = msgspec.structs.replace(CPU, compile_refusal="a prototype")
    assert "eager: a prototype" in plan_table(plan("", mac))


def test_the_table_groups_digits_and_says_units() -> None:
    table = plan_table(make_plan(load(SUBMISSIONS / "run7.toml"), track(), H100X8))
    lines = {line.split("  ")[0].strip(): line for line in table.split("\n") if line.strip()}
    assert "6,833,569,792" in lines["tokens"]
    assert "1,048,576" in lines["batch"]
    assert "1,123,157,490" in lines["parameters"]
    assert " GB " in lines["peak memory"]
    assert " h " in lines["training time"]
    assert table.startswith("run7 on gpt2-8xh100\nthe track sets data.dataset, data.shards, ")
