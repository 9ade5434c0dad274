"""`bench prove`: what holds is said with its closeness and kept, what cannot run here is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cli
from bench.proving import subject as subjects
from bench.proving.proof import Proof, problems_of_proofs


def prove(tmp_path: Path, *words: str) -> int:
    return cli.main(["prove", "--device", "cpu", "--data", str(tmp_path), *words])


def test_a_proof_is_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove(tmp_path, "--kernel", "adamw", "--implementation", "fused", "--examples", "3") == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("adamw/fused ")
    assert "properties hold" in line
    assert last.startswith("1 kernels proved on ")
    assert len(list((tmp_path / "proofs").iterdir())) == 1


def test_proofs_as_json_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import msgspec

    words = ("--kernel", "adamw", "--implementation", "fused", "--examples", "20", "--json")
    assert prove(tmp_path, *words) == 0
    (proof,) = msgspec.convert(json.loads(capsys.readouterr().out), list[Proof])
    kernels = [{"op": "adamw", "implementation": "fused"}]
    assert list(problems_of_proofs(kernels, [proof], proof.device_name, proof.versions)) == []


def test_what_this_device_cannot_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove(tmp_path, "--kernel", "attention", "--implementation", "varlen") == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "varlen" in error
    assert "blocked" in hint


def test_a_wrong_kernel_has_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = subjects.implementation

    def broken(op: str, name: str):  # type: ignore[no-untyped-def]
        return whole(op, name) if name == "reference" else lambda *arguments, **options: None

    monkeypatch.setattr(subjects, "implementation", broken)
    assert prove(tmp_path, "--kernel", "adamw", "--implementation", "fused") == 4
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: adamw/fused on cpu: ")
    assert "--debug" in hint
    assert not (tmp_path / "proofs").exists()
