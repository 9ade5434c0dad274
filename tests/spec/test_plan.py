"""The plan: published step counts, and what holds for every recipe, track and machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import PlanRefused, RecipeError
from bench.spec.plan import Plan, make_plan
from bench.spec.plan_machine import MAX_TOKENS, PlanMachine
from bench.spec.plan_table import plan_table
from bench.spec.scaling import auto_batch_tokens
from bench.spec.submission import load
from tests.spec.recipes import (
    CPU,
    H100X8,
    MACHINES,
    ROOT,
    SHIPPED,
    SUBMISSIONS,
    TOMLS,
    plan,
    submission,
    track,
    unscaled,
)

# nanochat's published runs (README of karpathy/nanochat at 92d63d4); their value-embedding gate reads 32
# channels.
RUNS = {
    "run1": ("depth = 24", "param_data_ratio = 12.0", "tokens = 524288", 16704),
    "run2": ("depth = 26", "param_data_ratio = 8.5", "tokens = 524288", 14889),
    "run3": ("depth = 26", "param_data_ratio = 8.25", "tokens = 1048576", 7226),
}
KEYS = [
    "iterations",
    "batch_tokens",
    "tokens",
    "target_tokens",
    "width",
    "heads",
    "layers",
    "vocab_padded",
    "parameters",
    "scaling_parameters",
    "flops_per_token",
    "total_flops",
    "matrix_lr",
    "weight_decay",
    "tau",
    "device_sequences",
    "accumulation",
    "predicted_peak_bytes",
    "predicted_seconds",
    "refusals",
    "kernels",
]


@pytest.mark.parametrize("run", RUNS)
def test_the_steps_of_nanochats_runs(run: str) -> None:
    depth, ratio, batch, steps = RUNS[run]
    made = plan(
        f"[model]\n{depth}\nve_gate_channels = 32\nsmear = false\nbackout = false\n"
        f"[horizon]\n{ratio}\n[batch]\n{batch}"
    )
    assert made.iterations == steps


def test_the_steps_of_run_7_and_run_6() -> None:
    assert (
        plan("[model]\ndepth = 22\n[horizon]\nparam_data_ratio = 12.0\n[batch]\ntokens = 1048576").iterations
        == 6517
    )
    for name, steps in (("run7", 6517), ("run6-fixed", 5568)):
        assert make_plan(load(SUBMISSIONS / f"{name}.toml"), track(), H100X8).iterations == steps


@pytest.mark.parametrize("depth", [22, 24, 26])
def test_the_automatic_batch_of_the_speedruns_is_a_million(depth: int) -> None:
    assert plan(f"[model]\ndepth = {depth}").batch_tokens == 2**20


def test_the_automatic_batch_at_the_reference_is_the_references() -> None:
    made = plan("")
    assert (made.batch_tokens, made.rates.batch_lr_scale, made.rates.width_lr_scale) == (2**19, 1.0, 1.0)
    assert made.weight_decay == made.recipe.optimizer.muon.weight_decay


@given(low=st.floats(1e-3, 1e3), factor=st.floats(1, 1e3))
def test_the_automatic_batch_grows_with_the_horizon(low: float, factor: float) -> None:
    small, large = auto_batch_tokens(low), auto_batch_tokens(low * factor)
    assert small.bit_count() == large.bit_count() == 1
    assert small <= large
    assert abs(math.log2(small / (2**19 * low**0.383))) <= 0.5 + 1e-9


def test_the_weight_decay_of_run_4() -> None:
    """0.2 x sqrt(2) / 6.63 = 0.0427 at d24 (the rule of nanochat's base_train.py at 324e69c)."""
    made = plan(
        "[model]\ndepth = 24\nve_gate_channels = 32\n[optimizer.muon]\nweight_decay = 0.2\n"
        "[horizon]\nparam_data_ratio = 9.5"
    )
    assert made.rates.batch_lr_scale == pytest.approx(1.4142, abs=1e-4)
    assert made.weight_decay == pytest.approx(0.0427, abs=5e-5)
    assert made.matrix_lr == pytest.approx(0.02 * math.sqrt(2))


@pytest.mark.parametrize("depth", [4, 12, 24])
def test_tau_is_constant_over_depth_and_batch(depth: int) -> None:
    """With LR x sqrt(B) and WD x sqrt(B) / D, B / (LR WD D) does not depend on B, nor at one ratio on D."""
    taus = [
        plan(f"[model]\ndepth = {depth}\n[batch]\ntokens = {batch}").tau for batch in (2**17, 2**19, 2**21)
    ]
    assert taus == pytest.approx([plan("").tau] * 3, rel=0.02)


def test_tau_without_decay_is_told_as_none() -> None:
    made = plan("[optimizer.muon]\nweight_decay = 0.0")
    assert made.tau == math.inf
    assert json.loads(msgspec.json.encode(made))["tau"] is None
    assert "none" in plan_table(made)


def test_the_json_has_what_was_promised() -> None:
    made = plan("")
    data = json.loads(msgspec.json.encode(made))
    assert set(KEYS) <= set(data)
    assert sum(data["parameters"].values()) == data["parameters_total"]
    assert data["predicted_peak_bytes"] == sum(data["memory"].values())
    assert {choice["op"] for choice in data["kernels"]} >= {"attention", "linear_cross_entropy"}


def test_the_same_inputs_give_the_same_bytes() -> None:
    made = [
        msgspec.json.encode(make_plan(load(SUBMISSIONS / "run7.toml"), track(), H100X8)) for _ in range(2)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("submission_name", SHIPPED)
def test_titles_and_machines_do_not_change_the_hash_but_the_method_does(submission_name: str) -> None:
    shipped = load(SUBMISSIONS / f"{submission_name}.toml")
    named = unscaled(track())
    made = make_plan(shipped, named, H100X8)
    faster = msgspec.structs.replace(
        H100X8, flops_per_s=1e18, device_name="another", device_memory_bytes=2**40
    )
    assert make_plan(shipped, named, faster).sha256 == made.sha256
    lr = msgspec.structs.replace(shipped.recipe.optimizer.muon, lr=0.019)
    other = msgspec.structs.replace(
        shipped.recipe, optimizer=msgspec.structs.replace(shipped.recipe.optimizer, muon=lr)
    )
    assert make_plan(msgspec.structs.replace(shipped, recipe=other), named, H100X8).sha256 != made.sha256


def planned(toml: str, machine: PlanMachine, count: int) -> Plan:
    """The plan on a track for this machine."""
    named = track(machine_class=machine.machine_class, device_kind=machine.device_kind, device_count=count)
    return plan(toml, machine, unscaled(named))


@given(toml=TOMLS, machine=MACHINES)
def test_what_holds_for_every_plan(toml: str, machine: tuple[PlanMachine, int]) -> None:
    made = planned(toml, *machine)
    assert (
        made.tokens
        == made.iterations * made.batch_tokens
        <= made.target_tokens
        < made.tokens + made.batch_tokens
    )
    assert made.width == made.heads * made.model.head_dim >= made.layers * 64
    assert made.total_flops == pytest.approx(made.flops_per_token * made.tokens)
    assert len(made.model.window_sizes) == made.layers
    assert made.model.window_sizes[-1] == made.model.sequence_length
    rows = made.device_sequences * made.accumulation * made.world_size * made.model.sequence_length
    assert rows == made.batch_tokens or any("batch" in refusal for refusal in made.refusals)
    assert json.loads(msgspec.json.encode(made))["width"] == made.width
    assert all(f"refused: {refusal}" in plan_table(made).split("\n") for refusal in made.refusals)


@given(toml=TOMLS)
def test_devices_change_the_accumulation_only(toml: str) -> None:
    one, eight = (
        planned(toml.replace('device_sequences = "auto"', "device_sequences = 1"), H100X8, n) for n in (1, 8)
    )
    assert one.sha256 == eight.sha256
    if not one.refusals + eight.refusals:
        assert one.accumulation == 8 * eight.accumulation
    fields = [
        "iterations",
        "batch_tokens",
        "tokens",
        "matrix_lr",
        "weight_decay",
        "rates",
        "model",
        "schedule",
        "device_sequences",
    ]
    assert all(
        getattr(one, field) == getattr(eight, field)
        for field in fields
        if not (one.refusals + eight.refusals)
    )


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[batch]\ntokens = 1000000", "batch of 1,000,000 tokens is not whole rows of 2,048 on each of 8"),
        (
            "[batch]\ntokens = 1048576\ndevice_sequences = 3",
            "device_sequences = 3 does not divide the 64 rows",
        ),
        ("[horizon]\ntokens = 5", "the horizon is shorter than one step"),
    ],
)
def test_other_refusals(toml: str, told: str) -> None:
    assert any(told in refusal for refusal in plan(toml).refusals)


def test_another_machine_than_the_tracks_is_refused() -> None:
    assert plan("", CPU).refusals[0] == "track gpt2-8xh100 is for a machine of class 8xH100, this is cpu"


@pytest.mark.parametrize(
    "horizon", ["param_data_ratio = 1e6", "iterations = 1000000000000000", "flops = 1e30"]
)
def test_horizons_beyond_counting_are_refused(horizon: str) -> None:
    with pytest.raises(PlanRefused, match="horizon") as caught:
        plan(f"[model]\ndepth = 64\n[horizon]\n{horizon}")
    assert f"{MAX_TOKENS:.3g}" in caught.value.message


def test_a_recipe_that_the_track_breaks_is_named() -> None:
    with pytest.raises(RecipeError, match="inline on cpu-quick"):
        make_plan(submission("[model]\nkv_group = 3"), track("cpu-quick"), CPU)


def test_seconds_are_the_horizons_whatever_the_rate() -> None:
    made = plan("[horizon]\nseconds = 300.0", CPU)
    assert (made.predicted_seconds, made.iterations) == (300.0, 0)
    rated = plan("[horizon]\nseconds = 300.0")
    assert rated.tokens == pytest.approx(300.0 * 8 * 0.45 * 989e12 / rated.flops_per_token, rel=0.001)
    assert rated.predicted_dollars == pytest.approx(300 / 3600 * 8 * 3.0)


def test_planning_loads_no_torch() -> None:
    program = (
        "import sys; from bench.cli import main; code = main(['plan', 'submissions/run7.toml', '--json']); "
        "heavy = {'torch', 'numpy', 'pyarrow', 'tiktoken', 'psutil', 'importlib.metadata', 'difflib'}; "
        "found = heavy & set(sys.modules); sys.exit(str(found) if found else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iterations"] == 6517


def test_under_a_horizon_in_seconds_the_rate_of_the_machine_is_no_part_of_the_plan() -> None:
    submission, named = load(SUBMISSIONS / "run7.toml"), track("h200-5min")
    machines = [msgspec.structs.replace(H100X8, flops_per_s=rate) for rate in (None, 1e14, 4e14)]
    plans = [make_plan(submission, named, machine) for machine in machines]
    assert len({plan.sha256 for plan in plans}) == 1
    assert plans[0].iterations == 0
    assert not any("shorter" in refusal for refusal in plans[0].refusals)
    assert len({plan.iterations for plan in plans}) == 3
