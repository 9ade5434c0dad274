"""Sweeps as data: their cells, couplings, refusals and cost; every shipped template among them."""

from __future__ import annotations

import csv
import io
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import PlanRefused, RecipeError
from bench.experiments.statistics import minimum_detectable_effect
from bench.experiments.sweep import Cell, Sweep, cell_text, cells_of, load_sweep, nested, submission_of
from bench.experiments.sweep_chart import sweep_chart
from bench.experiments.sweep_plan import SweepPlan, conflicts, coupled, plan_sweep, require, sweep_table
from bench.experiments.sweep_report import COLUMNS, csv_text, record_row, rows_of, summary
from bench.experiments.sweep_run import Done, Job, recorded, winner
from bench.host.planning import rate_key, remember_rate
from bench.spec.plan import Plan, make_plan
from bench.spec.plan_machine import PlanMachine
from bench.spec.submission import Submission, flatten, load
from bench.spec.track import NamedTrack, load_track
from bench.spec.workspace import Workspace
from tests.experiments.runs import changed, run_of
from tests.records.sample import ROOT
from tests.tiny import write_toml

SWEEPS = sorted((ROOT / "submissions" / "sweeps").glob("*.toml"))
HEAD: dict[str, Any] = {
    "title": "A sweep",
    "base": "quick",
    "track": "cpu-quick",
    "effect": 0.03,
    "sigma": 0.0075,
    "seeds": 2,
}
GPU = PlanMachine(
    device_kind="cuda",
    device_name="Example",
    device_count=8,
    machine_class="8xH100",
    device_memory_bytes=80 * 2**30,
    flops_per_s=3.6e15,
    rate_source="test",
)


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    for name in ("submissions", "leaderboard/tracks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return Workspace(root=tmp_path, data=tmp_path / ".data")


def write(space: Workspace, name: str = "mine", **changes: Any) -> Path:
    path = space.submissions / "sweeps" / f"{name}.toml"
    tables = HEAD | {"axes": {"schedule.warmdown_ratio": [0.2, 0.5]}} | changes
    axes = tables.pop("axes")
    write_toml(path, tables)
    text = path.read_text()
    if axes:
        text += "[axes]\n" + "".join(f'"{field}" = {values!r}\n' for field, values in axes.items())
    path.write_text(text.replace("'", '"'))
    return path


def planned(space: Workspace, **changes: Any) -> SweepPlan:
    return plan_sweep(write(space, **changes), space, "cpu", {}, None)


@cache
def free_track() -> NamedTrack:
    return load_track("gpt2-8xh100", ROOT / "leaderboard" / "tracks")


def plan_of(submission: Submission) -> Plan:
    return make_plan(submission, free_track(), GPU)


@cache
def base() -> Submission:
    return load(ROOT / "submissions" / "run6-fixed.toml")


def coupled_plan(sweep: Sweep, **fields: Any) -> Plan:
    cell = Cell(name="cell", settings={field.replace("__", "."): value for field, value in fields.items()})
    return plan_of(submission_of(base().recipe, coupled(sweep, cell, base(), plan_of(base()), plan_of)))


SVG = "{http://www.w3.org/2000/svg}"
SWEEP = msgspec.convert(HEAD | {"track": "gpt2-8xh100", "base": "run6-fixed"}, Sweep)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_template_is_whole_on_its_track(path: Path, space: Workspace) -> None:
    """Here another machine than the track's is the only thing that may stand in the way."""
    made = plan_sweep(path, space, "cpu", {}, None)
    others = [r for r in made.refusals if "is for a machine of class" not in r and "needs CUDA" not in r]
    assert others == []
    assert len(made.cells) >= 3
    assert len({cell.recipe_sha256 for cell in made.cells}) == len(made.cells)
    assert made.num_runs == len(made.cells) * made.sweep.seeds + made.sweep.confirm_seeds
    assert path.stem in sweep_table(made)


def test_the_templates_are_those_of_the_plans() -> None:
    letters = {
        title.split()[1].rstrip(":") for title in (load_sweep(p).title for p in SWEEPS) if "Template" in title
    }
    assert letters == set("ABCDEFG")
    grid = load_sweep(ROOT / "submissions" / "sweeps" / "warmdown.toml").axes
    assert grid["schedule.warmdown_ratio"] == [0.2, 0.3, 0.4, 0.5]
    assert grid["schedule.warmdown_shape"] == ["linear", "cosine"]
    lane_c = load_sweep(ROOT / "submissions" / "sweeps" / "lane-c.toml")
    for cell in cells_of("lane-c", lane_c):
        known = {"baseline": "d12-local"}.get(cell.name[7:], f"d12-{cell.name[7:]}").replace(
            "d12-both", "d12-fused-both"
        )
        recipe = load(ROOT / "submissions" / "d12-local.toml").recipe
        assert submission_of(recipe, cell).sha256 == load(ROOT / "submissions" / f"{known}.toml").sha256


@given(
    st.dictionaries(
        st.sampled_from(["schedule.warmdown_ratio", "model.softcap", "loss.z_loss"]),
        st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True),
        min_size=1,
    )
)
@settings(max_examples=40)
def test_a_grid_is_the_product_of_its_axes(axes: dict[str, list[float]]) -> None:
    sweep = msgspec.convert(HEAD | {"axes": axes}, Sweep)
    cells = cells_of("x", sweep)
    assert len(cells) == math.prod(map(len, axes.values()))
    assert len({tuple(cell.settings.items()) for cell in cells}) == len(cells)
    assert all(flatten(nested(cell.settings)) == cell.settings for cell in cells)


def test_a_cell_file_is_the_recipe_that_was_planned(space: Workspace) -> None:
    made = planned(space)
    for cell in made.cells:
        assert load(cell.path, space.submissions).sha256 == cell.recipe_sha256
        assert 'base = "quick"' in cell_text(made.sweep, cell.cell)
    before = [cell.path.stat().st_mtime_ns for cell in made.cells]
    assert [cell.path.stat().st_mtime_ns for cell in planned(space).cells] == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"axes": {}}, "neither is given"),
        ({"axes": {"schedule.warmdown_ratio": []}}, "no values"),
        ({"axes": {"model.softcap": list(range(201))}}, "at most 200"),
        ({"axes": {"schedule.nope": [1]}}, "no such field"),
        ({"axes": {"schedule.warmdown_ratio": [2.0]}}, "<= 1.0"),
        ({"effect": -1.0}, "effect"),
        ({"seed": 1}, "no such field"),
        ({"base": "../x"}, "base"),
        ({"axes": {"a b": [1], "c": [2]}}, "no such field"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said(changes: dict[str, Any], told: str, space: Workspace) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(space, **changes)
    assert told in "\n".join(caught.value.lines())


def test_too_few_seeds_for_the_effect_are_refused(space: Workspace) -> None:
    made = planned(space, effect=0.005)
    assert made.refusals == [
        "2 seeds a cell cannot resolve 0.005 of val_bpb (sigma 0.0075, level 0.01, power 90%); 59 would"
    ]
    assert minimum_detectable_effect(0.0075, (59, 59)) <= 0.005 < minimum_detectable_effect(0.0075, (58, 58))
    with pytest.raises(PlanRefused, match="59 would"):
        require(made)


@pytest.mark.parametrize(
    "field", ["model.depth", "batch.tokens", "horizon.tokens", "horizon.iterations", "scaling.batch"]
)
def test_what_the_track_fixes_is_not_swept(field: str) -> None:
    track = load_track("cpu-quick", ROOT / "leaderboard" / "tracks")
    cell = Cell(name="x", settings={field: 1})
    assert "cpu-quick" in conflicts(msgspec.convert(HEAD, Sweep), [cell], track)[0]
    assert conflicts(SWEEP, [cell], free_track()) == []


@given(st.floats(0.3, 3.0))
@settings(max_examples=15)
def test_rates_follow_the_batch_or_stay(multiplier: float) -> None:
    nominal, plain = coupled_plan(SWEEP, scaling__batch=multiplier), plan_of(base())
    ratio = nominal.batch_tokens / plain.batch_tokens
    assert nominal.matrix_lr / plain.matrix_lr == pytest.approx(math.sqrt(ratio))
    assert nominal.tau == pytest.approx(plain.tau, rel=0.01)
    held = coupled_plan(msgspec.structs.replace(SWEEP, couplings=()), scaling__batch=multiplier)
    assert held.matrix_lr == pytest.approx(plain.matrix_lr)
    assert held.weight_decay == pytest.approx(plain.weight_decay)


@given(st.floats(3.0, 30.0), st.floats(0.5, 2.0))
@settings(max_examples=15)
def test_weight_decay_follows_the_horizon_at_equal_tau(ratio: float, own: float) -> None:
    plain = plan_of(base())
    assert coupled_plan(SWEEP, horizon__param_data_ratio=ratio).tau == pytest.approx(plain.tau, rel=1e-6)
    moved = coupled_plan(SWEEP, horizon__param_data_ratio=ratio, scaling__weight_decay=own)
    assert moved.tau * own == pytest.approx(plain.tau, rel=1e-6)  # the axis' own factor stays
    free = coupled_plan(msgspec.structs.replace(SWEEP, couplings=("batch",)), horizon__param_data_ratio=ratio)
    assert free.weight_decay == pytest.approx(plain.weight_decay)


@given(st.integers(8, 30), st.integers(32, 128))
@settings(max_examples=15)
def test_shapes_are_matched_in_flops(depth: int, aspect: int) -> None:
    sweep = msgspec.structs.replace(SWEEP, matched="flops")
    found = coupled_plan(sweep, model__depth=depth, model__aspect_ratio=aspect)
    assert found.total_flops == pytest.approx(plan_of(base()).total_flops, rel=0.01)


def test_times_are_matched_by_the_clock() -> None:
    found = coupled_plan(msgspec.structs.replace(SWEEP, matched="seconds"), model__depth=20)
    assert found.recipe.horizon.seconds == plan_of(base()).predicted_seconds
    unknown = msgspec.structs.replace(plan_of(base()), predicted_seconds=None)
    sweep = msgspec.structs.replace(SWEEP, matched="seconds")
    with pytest.raises(PlanRefused, match="no rate"):
        coupled(sweep, Cell(name="x", settings={}), base(), unknown, plan_of)


def test_the_cost_is_known_once_a_rate_is(space: Workspace) -> None:
    made = planned(space)
    assert made.seconds is None
    machine = made.cells[0].plan.machine
    remember_rate(space.data / "rates.json", rate_key(machine.device_name, "bfloat16", 4), 1e11)
    again = planned(space)
    each = again.cells[0].plan.total_flops / 1e11
    assert again.seconds == pytest.approx(each * (2 * 2 + 2))


def done_of(made: SweepPlan, scores: dict[str, list[float | None]]) -> list[Done]:
    """Records as if each cell's runs had these scores; None diverged."""
    found = []
    for cell in made.cells:
        recipe = load(cell.path, made.cells[0].path.parents[3] / "submissions").recipe
        for seed, score in enumerate(scores[cell.cell.name]):
            record = run_of(cell.cell.name, seed, score, recipe=recipe)
            found.append(Done(Job(cell, seed, seed >= made.sweep.seeds), record.status, record))
    return found


def test_the_winner_is_quoted_by_its_fresh_seeds(space: Workspace) -> None:
    made = planned(space)
    done = done_of(made, {"mine-0.2": [2.5, 2.5], "mine-0.5": [2.4, 2.3, 2.45, 2.47]})
    best = winner(made, done)
    assert best is not None
    assert best.cell.name == "mine-0.5"
    text = summary(made, done)
    assert "2.35000 by the runs that chose it, 2.46000 on 2 fresh seeds (+0.11000)" in text
    assert "| mine-0.2 | 2.50000 | 2 |" in text
    titles = [title.text for title in ElementTree.fromstring(sweep_chart(made, done)).iter(f"{SVG}title")]
    assert titles == [  # the best mean first
        "A sweep",
        *("0.5, run: 2.40000", "0.5, run: 2.30000"),
        *("0.5, fresh seed: 2.45000", "0.5, fresh seed: 2.47000"),
        "0.5: mean val_bpb 2.35000 ± 0.02500, 2 runs",
        *("0.2, run: 2.50000", "0.2, run: 2.50000"),
        "0.2: mean val_bpb 2.50000 ± 0.02500, 2 runs",
    ]


def test_a_chart_of_a_sweep_without_a_score_has_the_cells_names(space: Workspace) -> None:
    made = planned(space)
    done = done_of(made, {"mine-0.2": [None], "mine-0.5": [None]})
    words = [node.text for node in ElementTree.fromstring(sweep_chart(made, done)).iter(f"{SVG}text")]
    assert {"0.2", "0.5", "a run", "mean of a cell, 95 % interval"} <= set(words)
    assert "winner on fresh seeds" not in words


def test_a_cell_that_lost_a_seed_cannot_win(space: Workspace) -> None:
    made = planned(space)
    done = done_of(made, {"mine-0.2": [2.5, 2.5], "mine-0.5": [2.0, None]})
    best = winner(made, done)
    assert best is not None
    assert best.cell.name == "mine-0.2"
    assert "mine-0.5, seed 1: diverged" in summary(made, done)
    assert winner(made, []) is None
    assert "no winner" in summary(made, [])


def test_rows_have_the_columns_of_the_plan_in_their_order(space: Workspace) -> None:
    made = planned(space, target=2.45)
    done = done_of(made, {"mine-0.2": [2.5, 2.5], "mine-0.5": [2.4, 2.3]})
    done.append(Done(Job(made.cells[0], 7, False), "failed", None))
    text = csv_text(rows_of(made, done))
    assert text.splitlines()[0] == (
        "timestamp,git_commit,experiment_name,seed,depth,max_seq_len,device_batch_size,total_batch_size,"
        "target_param_data_ratio,warmdown_ratio,warmdown_shape,target_metric_name,target_metric_threshold,"
        "time_to_target_sec_measured,time_to_target_sec_extrapolated,extrapolation_method,tok_per_sec_median,"
        "dt_median_ms,wall_time_sec,final_train_loss,min_val_bpb,peak_mem_mib,status"
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"]
    assert [bool(row["time_to_target_sec_measured"]) for row in rows] == [False, False, True, True, False]
    assert {row["warmdown_ratio"] for row in rows[:4]} == {"0.2", "0.5"}
    assert rows[0]["peak_mem_mib"] == "900.0"
    assert rows[4]["timestamp"] == ""
    assert len(COLUMNS) == 23


def test_unknown_figures_are_empty() -> None:
    row = record_row(run_of("lost", 0, None), "val_bpb", 2.0, "lower")
    assert (row["min_val_bpb"], row["time_to_target_sec_measured"], row["status"]) == (None, None, "diverged")


def test_a_record_counts_under_this_track_only(space: Workspace) -> None:
    made = planned(space)
    record = run_of("quick", 0, 2.5)
    assert list(recorded(made, [record])) == [(record.identity.recipe_sha256, 0)]
    assert recorded(made, [changed(record, "identity", track_sha256="0" * 64)]) == {}
