"""The self-test passes on a CPU, and fails where a device would compute something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.checkup import self_test as tested
from bench.checkup.self_test import TOLERANCES, recipe_of, stepped, train_steps
from bench.errors import VerificationFailed
from bench.host.device import open_device
from bench.spec.recipe import Kernels
from bench.spec.workspace import Workspace
from tests.tiny import facts, torchs_settings_kept

ROOT = Path(__file__).resolve().parents[2]
SPACE = Workspace(root=ROOT, data=ROOT / ".data")


def test_every_check_passes_on_a_cpu() -> None:
    with torchs_settings_kept():
        findings = tested.self_test(SPACE, facts())
    assert [finding.state for finding in findings] == ["ok"] * 4, findings


def test_training_from_a_seed_gives_the_same_bits_twice() -> None:
    first, second = (
        train_steps(SPACE, facts(), open_device("cpu"), "float32", Kernels(), torch.float32) for _ in range(2)
    )
    assert first.losses == second.losses
    assert all(torch.equal(change, second.changes[name]) for name, change in first.changes.items())
    assert all(change.norm() > 0 for change in first.changes.values())


@pytest.mark.parametrize("name", TOLERANCES)
def test_one_matrix_of_wrong_sign_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong gradient does: the losses of two steps hardly show it, the matrix does."""
    matrices = tested._matrices
    calls = []

    def turned(trainer: object) -> dict[str, Tensor]:
        calls.append(trainer)
        found = matrices(trainer)  # type: ignore[arg-type]
        wrong = "blocks.1.mlp.c_fc.weight"
        return found | {wrong: -found[wrong]} if len(calls) > 2 else found

    monkeypatch.setattr(tested, "_matrices", turned)
    with pytest.raises(VerificationFailed, match=r"blocks\.1\.mlp\.c_fc\.weight"):
        stepped(SPACE, facts(), open_device("cpu"), name, TOLERANCES[name])


def test_both_sides_differ_in_their_kernels_only() -> None:
    recipe = recipe_of("bfloat16", Kernels())
    assert recipe.precision.compute == "bfloat16"
    assert not recipe.compile.enabled
