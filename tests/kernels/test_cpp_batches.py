"""Kernels compiled together: the functions that Inductor compiles one by one, in fewer libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpp_batches import HEADER, READ_IN, Batch, Kernel, batch_cpp_kernels, dealt
from setup_env import pinned

batches = pytest.mark.skipif(not torch.__version__.startswith(READ_IN), reason="another torch's Inductor")

SCALE = Kernel(
    ("const float*", "float*", "int64_t"),
    HEADER
    + """extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0, const int64_t ks0)
{
    for (int64_t x0 = 0; x0 < ks0; ++x0) { auto tmp0 = in_ptr0[x0]; out_ptr0[x0] = tmp0 * 3.0f + 0.1f; }
}
""",
)
ADD = Kernel(
    ("float*", "const float*"),
    HEADER
    + """extern "C"  void  kernel(float* in_out_ptr0, const float* in_ptr0)
{
    for (int64_t x0 = 0; x0 < 8; ++x0) { in_out_ptr0[x0] += in_ptr0[x0]; }
}
""",
)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A compile cache of this test's own."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache(dir=str(tmp_path)):
        yield tmp_path


def libraries(cache: Path) -> int:
    return len([path for path in cache.rglob("*.main.so") if path.is_file()])


def test_the_pinned_torch_is_the_one_whose_inductor_was_read() -> None:
    """Else all would be compiled one by one again, unseen."""
    assert pinned("torch").startswith(f"torch=={READ_IN}")


@given(st.lists(st.text(min_size=1, max_size=40), max_size=20), st.integers(1, 5))
def test_units_hold_every_kernel_once_and_are_about_equally_long(sources: list[str], num_units: int) -> None:
    kernels = [Kernel((str(i),), source) for i, source in enumerate(sources)]
    units = dealt(kernels, num_units)
    assert len(units) <= num_units
    assert all(units)
    assert sorted(each for unit in units for each in unit) == sorted(kernels)
    lengths = [sum(len(each.source) for each in unit) for unit in units]
    longest = max(map(len, sources), default=0)
    assert max(lengths, default=0) - min(lengths, default=0) <= longest


@batches
@pytest.mark.parametrize("num_units", [1, 2])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_kernels_of_a_batch_are_those_compiled_alone(cache: Path, num_units: int) -> None:
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    batch = Batch(AsyncCompile.submit, num_units)
    batch.kernels += [SCALE, ADD, SCALE]
    scale, add = batch.function(SCALE), batch.function(ADD)
    assert libraries(cache) == num_units
    alone = [CppPythonBindingsCodeCache.load_pybinding(each.argtypes, each.source) for each in (SCALE, ADD)]
    results = []
    for scaling, adding in ((scale, add), alone):
        x, y = torch.linspace(-1, 1, 8), torch.empty(8)
        scaling(x, y, 8)
        adding(y, x)
        results.append(y)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], torch.linspace(-1, 1, 8) * 4 + 0.1)


@pytest.mark.parametrize(
    "source",
    [
        SCALE.source + ADD.source.removeprefix(HEADER),
        HEADER + "#include <vector>\n" + ADD.source.removeprefix(HEADER),
        ADD.source.replace(HEADER, "#include <vector>\n"),
        ADD.source.replace("kernel(", "other("),
    ],
)
def test_what_is_not_one_function_under_one_header_is_left_to_inductor(source: str) -> None:
    assert ADD.is_plain()
    assert not Kernel(ADD.argtypes, source).is_plain()


@batches
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_a_graph_becomes_one_library_a_compiler_thread(cache: Path) -> None:
    """Five kernels, apart because of the products between them, and two threads."""

    def graph(x: Tensor, w: Tensor) -> Tensor:
        for step in range(4):
            x = (x * (step + 1.5)).sin() @ w
        return x.exp()

    batch_cpp_kernels()
    x, w = torch.randn(64, 64), torch.eye(64)
    with torch._inductor.config.patch(compile_threads=2):
        torch.testing.assert_close(torch.compile(graph)(x, w), graph(x, w), rtol=1e-5, atol=1e-5)
    assert libraries(cache) == 2
