"""`bench doctor` on a checkout: what it says of data, proofs and the plan, and that its JSON is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from bench import cli
from bench.checkup.doctor import data, num_shards, plan, proofs
from bench.host.doctor import Diagnosis
from bench.host.planning import plan_here
from bench.proving.gate import proofs_for
from bench.spec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(root=ROOT, data=tmp_path)


def test_text_that_is_not_here_comes_with_the_command_that_fetches_it(space: Workspace) -> None:
    found = data(space)
    assert found.state == "note"
    assert found.says.startswith("stdlib; not here: climbmix")
    assert found.mend.endswith("python -m bench data fetch climbmix")
    shards = space.data / "shards" / "climbmix"
    shards.mkdir(parents=True)
    for name in ("a.parquet", "b.parquet", "c.parquet.part"):
        (shards / name).touch()
    assert num_shards(space.data, "climbmix") == 2
    assert data(space).says.startswith("stdlib, climbmix (2 shards); not here: fineweb-edu")


def test_the_first_recipe_is_planned_on_any_cpu(space: Workspace) -> None:
    first, second = plan(space, "cpu", {})
    assert (first.state, second.state) == ("ok", "note")
    assert second.mend == "make prove"


def test_a_kernel_proved_here_is_not_asked_for_again(space: Workspace) -> None:
    planned = plan_here(ROOT / "submissions" / "quick.toml", None, "cpu", space, {}, False)
    one = [each for each in planned.plan.kernels if each["op"] == "embedding"]
    alone = planned._replace(plan=msgspec.structs.replace(planned.plan, kernels=one))
    assert proofs(space, alone).state == "note"
    proofs_for(one, planned.facts, ROOT, space.proofs, lambda line: None)
    assert proofs(space, alone).state == "ok"


def test_a_checkout_without_its_track_is_a_fault(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "submissions", tmp_path / "submissions")
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    (tmp_path / "leaderboard" / "tracks" / "cpu-quick.toml").unlink()
    (found,) = plan(Workspace(root=tmp_path, data=tmp_path / ".data"), "cpu", {})
    assert (found.state, found.exit_code) == ("fault", 2)
    assert "cpu-quick" in found.says


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_the_command_diagnoses_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--device", "cpu", "--data", str(tmp_path), "--self-test", "--json"])
    told = capsys.readouterr().out
    found = msgspec.json.decode(told, type=Diagnosis)
    assert code == found.exit_code == 0
    names = [finding.name for finding in found.findings]
    assert names[-4:] == ["probes float32", "steps float32", "probes bfloat16", "steps bfloat16"]
    assert {"packages", "device", "compile", "data"} <= set(names)
    assert json.loads(told)["machine_class"] == "cpu"
