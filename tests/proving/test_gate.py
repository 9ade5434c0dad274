"""The gate: proofs are made once and kept, anew for a changed source or a torn file; a bad kernel stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import ProofFailed
from bench.host.machine import detect
from bench.proving import subject as subjects
from bench.proving.gate import proofs_for, sources_sha256, stored
from bench.proving.proof import problems_of_proofs
from kernels.choices import choose

FACTS = detect("cpu")
ROOT = Path(__file__).resolve().parents[2]
KERNELS = [
    {"op": "mix_rms_norm", "implementation": "reference"},
    {"op": "embedding", "implementation": "sorted"},
    {"op": "adamw", "implementation": "fused"},
]


def test_proofs_are_made_once(tmp_path: Path) -> None:
    said: list[str] = []
    made = proofs_for(KERNELS, FACTS, ROOT, tmp_path, said.append)
    assert [proof.name for proof in made] == ["embedding/sorted", "adamw/fused"]
    assert len(said) == 1
    assert list(problems_of_proofs(KERNELS, made, FACTS.device_name, FACTS.versions)) == []
    assert proofs_for(KERNELS, FACTS, ROOT, tmp_path, said.append) == made
    assert len(said) == 1


def test_a_torn_proof_is_made_anew(tmp_path: Path) -> None:
    kernels = KERNELS[1:2]
    (made,) = proofs_for(kernels, FACTS, ROOT, tmp_path, lambda line: None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    assert stored(tmp_path, "embedding", "sorted", sources_sha256(ROOT), FACTS) is None
    assert proofs_for(kernels, FACTS, ROOT, tmp_path, lambda line: None) == [made]


def test_a_kernel_that_is_wrong_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subjects.implementation

    def broken(op: str, name: str):  # type: ignore[no-untyped-def]
        function = whole(op, name)
        return function if name == "reference" else lambda *args: function(*args) * 1.01

    monkeypatch.setattr(subjects, "implementation", broken)
    with pytest.raises(ProofFailed, match="embedding/sorted on cpu") as raised:
        proofs_for(KERNELS[:2], FACTS, ROOT, tmp_path, lambda line: None)
    assert raised.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_every_source_of_a_kernel_counts(tmp_path: Path) -> None:
    for name in ("kernels/a.py", "kernels/triton_ops/b.py", "bench/proving/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = sources_sha256(tmp_path)
    for name in ("kernels/a.py", "kernels/triton_ops/b.py", "bench/proving/c.py"):
        (tmp_path / name).write_text("x = 2\n")
        after = sources_sha256(tmp_path)
        assert after != before
        before = after
    (tmp_path / "kernels" / "bench.py").write_text("x = 1\n")
    assert sources_sha256(tmp_path) == before


def test_the_checkout_s_kernels_are_what_is_hashed() -> None:
    assert {choice.op for choice in choose("cpu")}  # the plan's kernels come from the same folder
    assert sources_sha256(ROOT) == sources_sha256(ROOT)
