"""What a Linux container leaves us of the machine: its memory limit and its CPU quota."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

# cgroup v1 writes "no limit" as the largest multiple of the page size below 2^63 (kernel memory_limits).
_UNLIMITED_BYTES = 2**60


class CgroupLimits(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The tightest limits above this process; None where nothing limits."""

    memory_bytes: int | None
    cpu_cores: float | None


def cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """The memory and CPU limits of this process's control groups, version 1 or 2.

    A limit binds from any ancestor, so every level up to the mount's root is read: inside a container the
    path of `/proc/self/cgroup` may be the host's and absent here, and then the root alone holds the limit.
    Sources: Linux admin-guide/cgroup-v2 (memory.max, cpu.max), cgroup-v1/memory, scheduler/sched-bwc.
    """
    memory_bytes: list[float] = []
    cores: list[float] = []
    mount = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root / "proc/self/cgroup"):
        if not controllers:
            memory_bytes += _readings(mount, path, _memory_v2)
            cores += _readings(mount, path, _cores_v2)
        if "memory" in controllers:
            memory_bytes += _readings(mount / "memory", path, _memory_v1)
        if "cpu" in controllers:
            cores += _readings(mount / "cpu", path, _cores_v1)
    return CgroupLimits(
        memory_bytes=int(min(memory_bytes)) if memory_bytes else None,
        cpu_cores=min(cores, default=None),
    )


def _memberships(table: Path) -> list[tuple[list[str], str]]:
    """(controllers, path) of each hierarchy; version 2 is the one without controllers."""
    if not table.exists():
        return []
    rows = (line.split(":", 2) for line in table.read_text().splitlines())
    return [([name for name in controllers.split(",") if name], path) for _, controllers, path in rows]


def _readings(mount: Path, path: str, read: Callable[[Path], list[float]]) -> list[float]:
    inside = PurePosixPath(path.lstrip("/"))
    return [limit for level in (inside, *inside.parents) for limit in read(mount / level)]


def _memory_v2(group: Path) -> list[float]:
    return [float(word) for word in _words(group / "memory.max") if word != "max"]


def _memory_v1(group: Path) -> list[float]:
    limits = [float(word) for word in _words(group / "memory.limit_in_bytes")]
    return [limit for limit in limits if limit < _UNLIMITED_BYTES]


def _cores_v2(group: Path) -> list[float]:
    words = _words(group / "cpu.max")
    return [int(words[0]) / int(words[1])] if words and words[0] != "max" else []


def _cores_v1(group: Path) -> list[float]:
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return [int(quota[0]) / int(period[0])] if quota and period and int(quota[0]) > 0 else []


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []
