"""The tuned allocator, in fresh processes: its settings cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bench.host.allocator import AllocatorTuning, tune_allocator

REPOSITORY = Path(__file__).parents[2]
IS_GLIBC = platform.libc_ver()[0] == "glibc"

# Page faults of eight uses of 40 MiB, allocated as torch does: aligned, written, freed. The uses before those
# are not counted: see the module on when glibc's aligned blocks are used again.
PROGRAM = """
import ctypes, resource, sys
from bench.host.allocator import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator().reason is None
libc = ctypes.CDLL(None)
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    block = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(40 * 2**20)) == 0
    libc.memset(block, 1, 40 * 2**20)
    libc.free(block)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(24):
    use()
before = faults()
for _ in range(8):
    use()
print(faults() - before)
"""


def num_faults(how: str) -> int:
    child = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(child, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not IS_GLIBC, reason="glibc's malloc alone is tuned")
def test_tuned_memory_is_used_again_instead_of_faulted_in_anew() -> None:
    assert num_faults("tuned") < num_faults("untuned") / 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tune_allocator() == AllocatorTuning(
        settings={}, reason=f"the C library of {platform.system()} is not glibc"
    )
