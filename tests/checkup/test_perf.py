"""`bench perf`: that what it times are steps, whatever else a run of the plan would do."""

from __future__ import annotations

from pathlib import Path

from bench.checkup import perf
from bench.checkup.unscaled import unscaled_plan
from bench.data.text import prepared_text
from bench.host.device import configure, open_device
from bench.spec.submission import load
from bench.spec.workspace import Workspace
from bench.training.build import loop_config
from tests import tiny
from tests.spec.recipes import ROOT

STEPS = 6


def test_only_steps_are_timed(tmp_path: Path) -> None:
    space = tiny.checkout(tmp_path)
    recipe = load(space.submissions / f"{tiny.NAME}.toml").recipe
    facts = tiny.facts()
    with tiny.torchs_settings_kept():
        plan = unscaled_plan(Workspace(root=ROOT, data=space.data), facts, recipe)
        assert loop_config(plan).state_steps & set(range(STEPS))  # a run would hash these states too
        device = open_device("cpu")
        configure(device, cpu_cores=facts.cpu_cores)
        text = {"validation_bytes": 4000, "tokenizer_chars": 1_000_000}
        prepared = prepared_text("folder:tiny", plan.model.vocab_size, space.data, **text)[1]
        first_s, step_s = perf._training(plan, device, prepared, STEPS)
    assert first_s > 0.0
    assert len(step_s) == STEPS
    assert min(step_s) > 0.0
