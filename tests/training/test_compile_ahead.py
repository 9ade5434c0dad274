"""Compiling ahead: only where it helps, never in the way, and the run finds what it left."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.spec.plan import Plan
from bench.training.compile_ahead import CODE, Asked, compiled_ahead, is_worth_a_process
from tests import tiny

# Its matrices are worth a compiled pass.
LARGE = {"model": {"aspect_ratio": 96}, "compile": {"enabled": True}}


@pytest.fixture
def plan(tmp_path: Path, data: Path) -> Plan:
    return tiny.request(tiny.checkout(tmp_path, data, **LARGE)).plan


def libraries(cache: Path) -> set[Path]:
    return {path for path in cache.rglob("*.so") if path.is_file()}


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}


def test_only_a_first_run_on_a_cpu_with_room_to_spare_compiles_ahead(plan: Plan, tmp_path: Path) -> None:
    fresh = environment(tmp_path / "compile")
    assert plan.compiled
    assert is_worth_a_process(Asked(plan, 2), fresh)
    assert not is_worth_a_process(Asked(plan, 1), fresh)
    assert not is_worth_a_process(Asked(msgspec.structs.replace(plan, compiled=False), 2), fresh)
    cuda = msgspec.structs.replace(plan.machine, device_kind="cuda")
    assert not is_worth_a_process(Asked(msgspec.structs.replace(plan, machine=cuda), 2), fresh)
    small = msgspec.structs.replace(plan.machine, device_memory_bytes=2 * plan.predicted_peak_bytes - 1)
    assert not is_worth_a_process(Asked(msgspec.structs.replace(plan, machine=small), 2), fresh)
    assert not is_worth_a_process(Asked(plan, 2), environment(tmp_path))
    assert not is_worth_a_process(Asked(plan, 2), {})


def test_an_end_of_the_run_ends_it_and_its_own_is_no_fault(plan: Plan, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        compiled_ahead(Asked(plan, 2), environment(tmp_path / "compile")) as wait,
    ):
        raise KeyboardInterrupt
    assert wait() == -15  # SIGTERM
    broken = environment(tmp_path / "compile") | {"PYTHONHOME": str(tmp_path)}
    with compiled_ahead(Asked(plan, 2), broken) as wait:
        assert wait() == 1


def test_other_ranks_start_nothing(tmp_path: Path) -> None:
    with compiled_ahead(None, environment(tmp_path / "compile")) as wait:
        assert wait() is None
    assert not (tmp_path / "compile").exists()


@pytest.mark.slow
def test_what_it_compiled_is_not_compiled_again(plan: Plan, tmp_path: Path) -> None:
    asked, cache = Asked(plan, 2), tmp_path / "compile"
    with compiled_ahead(asked, environment(cache)) as wait:
        assert wait() == 0
    compiled = libraries(cache)
    assert compiled
    command = [sys.executable, "-m", "bench.training.compile_ahead"]
    subprocess.run(command, input=pickle.dumps(asked), cwd=CODE, env=environment(cache), check=True)
    assert libraries(cache) == compiled
