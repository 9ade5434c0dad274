"""Limits of control groups, read from trees as Linux lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.host.cgroup import CgroupLimits, cgroup_limits
from bench.host.machine import usable_cores

NO_LIMITS = CgroupLimits(memory_bytes=None, cpu_cores=None)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_version_2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/memory.max": "2000000000\n",
        "sys/fs/cgroup/user/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/cpu.max": "150000 100000\n",
    }
    assert cgroup_limits(write(tmp_path, files)) == CgroupLimits(memory_bytes=2_000_000_000, cpu_cores=1.5)


def test_version_1_knows_two_ways_to_say_unlimited(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/a\n2:cpu,cpuacct:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup_limits(write(tmp_path, files)) == NO_LIMITS


def test_version_1_limits(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/a\n2:cpu,cpuacct:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup_limits(write(tmp_path, files)) == CgroupLimits(memory_bytes=2**30, cpu_cores=3.0)


def test_a_path_of_the_host_leaves_the_limit_of_the_mount(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/memory.max": "4096\n"}
    assert cgroup_limits(write(tmp_path, files)).memory_bytes == 4096


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == NO_LIMITS


@pytest.mark.parametrize("quota", [0.25, 1.0, 1.9])
def test_a_small_quota_leaves_one_core(quota: float) -> None:
    assert usable_cores(CgroupLimits(memory_bytes=None, cpu_cores=quota)) == 1


def test_a_large_quota_adds_no_cores() -> None:
    wide = CgroupLimits(memory_bytes=None, cpu_cores=1e6)
    assert usable_cores(wide) == usable_cores(NO_LIMITS) >= 1
