"""A whole checkout in miniature, in which a person's commands run as processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.spec.recipe import Kernels
from tests.records.sample import ROOT
from tests.tiny import checkout

# Proving the CPU's fused kernels anew takes minutes; references need no proof.
REFERENCES = dict.fromkeys(Kernels.__struct_fields__, "reference")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A whole checkout: the program, a tiny track, recipe and corpus."""
    for name in ("bench", "kernels", "model"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    checkout(tmp_path, kernels=REFERENCES)
    (tmp_path / "leaderboard" / "reported.toml").write_text("")
    return tmp_path
