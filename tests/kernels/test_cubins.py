"""Every Triton kernel compiles for every architecture without a GPU: no spills, shared memory, matrix units.

The interpreter, under which the properties run, knows none of these three. This process runs with it, so the
compiling is done by others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.triton_ops.compile import ARCHITECTURES, Compilation, Compiled, faults, kernel_modules

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = 90  # the architecture of the leaderboard's machines; the others are `slow`
NUM_PROCESSES = 2
COMPILE = """
import json, sys
from kernels.triton_ops.compile import compile_module
made = [(*each[:-1], each.compiled) for each in compile_module(sys.argv[1], int(sys.argv[2]))]
print(json.dumps(made))
"""

Made = list[Compilation]


def compiled(module: str, arch: int, cache: Path) -> Made:
    """The specimens of a module, compiled in a process where Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, module, str(arch)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Compilation(*each[:-1], Compiled(*each[-1])) for each in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def futures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], Future[Made]]]:
    """What every selected test of this file asks for, being compiled two at a time."""
    cache = tmp_path_factory.mktemp("triton")
    asked = [
        (item.callspec.params["module"], item.callspec.params["arch"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_cubins
    ]
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        yield {pair: pool.submit(compiled, *pair, cache) for pair in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("module", kernel_modules())
@pytest.mark.parametrize(
    "arch", [arch if arch == QUICK else pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHITECTURES]
)
def test_cubins(module: str, arch: int, futures: dict[tuple[str, int], Future[Made]]) -> None:
    made = futures[module, arch].result()
    has_no_product_of_codes = module.endswith(".fp8_linear") and arch < 89  # Ampere
    assert bool(made) != has_no_product_of_codes, f"{module}: {len(made)} specimens for sm_{arch}"
    wrong = [f"{each.kernel} ({each.variant}): {fault}" for each in made for fault in faults(each)]
    assert not wrong


@pytest.mark.slow
def test_every_fault_is_seen(tmp_path: Path) -> None:
    made = compiled("tests.kernels.faulty_kernels", QUICK, tmp_path)
    spills, too_large, no_matrix, good = (" ".join(faults(each)) for each in made)
    assert spills.startswith("spills ")
    assert "232448" in too_large
    assert no_matrix == "no matrix instruction"
    assert good == ""


def test_the_interpreter_is_not_mistaken_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from kernels.triton_ops.compile import compile_specimen

    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_specimen(None, 90)
