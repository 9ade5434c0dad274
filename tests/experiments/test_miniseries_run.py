"""A real miniseries at test scale: the cells of two sweeps trained, and the gate on their records."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import cli
from bench.experiments.sweep_plan import plan_sweep
from bench.host.clock import Ledger
from bench.run import RunRequest, run
from bench.spec.submission import load
from bench.spec.workspace import Workspace
from tests.experiments.conftest import REFERENCES
from tests.tiny import checkout, facts, quiet, torchs_settings_kept

SWEEP = """
title = "Three depths"
base = "tiny"
track = "tiny"
effect = 5.0
sigma = 0.5
seeds = 3
confirm_seeds = 0

[axes]
"model.depth" = [1, 2, 3]
"""
# A learning rate of a hundredth is worse at every depth.
SLOWER = 'title = "Slower"\nbase = "tiny"\ntrack = "tiny"\n\n[scaling]\nlearning_rate = 0.01\n'


def train_cells(space: Workspace, base: str | None) -> None:
    """What `bench sweep` has each cell's process do, in this one."""
    planned = plan_sweep(space.submissions / "sweeps" / "mini.toml", space, "cpu", {}, None, base)
    assert not planned.refusals
    for cell in planned.cells:
        for seed_index in range(planned.sweep.seeds):
            request = RunRequest(
                submission=load(cell.path, space.submissions),
                track=planned.track,
                plan=cell.plan,
                facts=facts(),
                workspace=space,
                seed_index=seed_index,
                resume=False,
                environment={},
                image_digest="",
                notes=[],
            )
            with torchs_settings_kept():
                run(request, Ledger.start(), quiet())


@pytest.mark.slow
def test_a_miniseries_from_the_sweeps_to_the_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = checkout(tmp_path, kernels=REFERENCES)
    (space.submissions / "sweeps").mkdir()
    (space.submissions / "sweeps" / "mini.toml").write_text(SWEEP)
    (space.submissions / "slower.toml").write_text(SLOWER)
    train_cells(space, None)
    train_cells(space, "slower")

    monkeypatch.setattr(cli, "ROOT", tmp_path)
    plot = tmp_path / "profile.svg"
    gate = ["gate", "mini-slower-2", "--baseline", "mini-2", "--miniseries", "--plot", str(plot)]
    assert cli.main([*gate, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (criterion,) = (c for c in told["criteria"] if c["number"] == "6.4")
    assert (told["decision"], told["miniseries"], criterion["outcome"]) == ("reject", "fail", "fail")
    figures = criterion["figures"]
    for depth in (1, 2, 3):
        assert figures[f"d{depth}_num_seeds"] == 3
        assert figures[f"d{depth}_flops_ratio"] == 1.0
        assert figures[f"d{depth}_delta"] > figures[f"d{depth}_allowed"]
    assert figures["trend_depth"] == 3
    assert len(told["records"]) == 18
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert cli.main(gate) == 0
    assert "miniseries: fail" in capsys.readouterr().out
