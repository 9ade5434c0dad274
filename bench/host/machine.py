"""The machine as measured, without torch: devices, processor, memory, versions, settings; and its class."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.errors import PlanRefused
from bench.host.cgroup import CgroupLimits, cgroup_limits
from bench.host.facts import Kind, MachineFacts
from bench.host.peaks import known_device
from bench.host.power import Gpu, GpuList, list_gpus

# Variables that change how fast or how exactly torch and its libraries compute.
_SETTING_PREFIXES = (
    "PYTORCH_", "TRITON_", "TORCH", "OMP_", "KMP_", "GOMP_", "MKL_", "CUDA_", "CUBLAS_", "NCCL_", "MALLOC_",
)  # fmt: skip
# What torchrun tells its processes: no setting, and paths of this machine.
_NO_SETTING = "TORCHELASTIC_"
_DISTRIBUTIONS = (
    "torch", "triton", "numpy", "msgspec", "psutil", "nvidia-ml-py", "pyarrow", "tiktoken", "rustbpe",
    "safetensors", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
    "nvidia-nccl-cu12", "nvidia-nccl-cu13",
)  # fmt: skip
# Instructions that decide how torch multiplies matrices on a CPU, under the names of Linux and macOS.
_FEATURES = (
    "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16",
    "amx_int8", "amx_fp16", "asimd", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip


def detect(
    kind: Kind | None = None, *, environment: Mapping[str, str] | None = None, root: Path = Path("/")
) -> MachineFacts:
    """Measure this machine for runs on `kind` (default: cuda where a GPU is visible, mps on a Mac, else cpu).

    Args:
        environment: the process's variables; settings are recorded, CUDA_VISIBLE_DEVICES is obeyed.

    Raises:
        PlanRefused: the kind asked for is not on this machine.
    """
    environment = {} if environment is None else environment
    nodes = int(environment.get("GROUP_WORLD_SIZE", "1"))  # of torchrun; one class of machine, so all alike
    found = list_gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    kind = _choose(kind, found)
    limits = cgroup_limits(root)
    installed_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ram_bytes = min(installed_bytes, limits.memory_bytes or sys.maxsize)
    cpu_model, features = _processor(root / "proc/cpuinfo")
    on_cuda, is_mac = kind == "cuda", sys.platform == "darwin"
    return MachineFacts(
        device_kind=kind,
        device_name=found.gpus[0].name if on_cuda else cpu_model,
        device_count=len(found.gpus) * nodes if on_cuda else 1,
        device_memory_bytes=min(gpu.memory_bytes for gpu in found.gpus) if on_cuda else ram_bytes,
        gpus=found.gpus * nodes if on_cuda else (),
        gpu_reason=found.reason,
        driver_version=found.driver_version,
        cpu_model=cpu_model,
        cpu_cores=usable_cores(limits),
        ram_bytes=ram_bytes,
        os="macOS" if is_mac else platform.system(),
        os_version=platform.mac_ver()[0] if is_mac else platform.release(),
        arch=platform.machine(),
        python_version=platform.python_version(),
        features=features,
        hostname_sha256=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        versions=_versions(),
        environment={
            name: environment[name]
            for name in sorted(environment)
            if name.startswith(_SETTING_PREFIXES) and not name.startswith(_NO_SETTING)
        },
        load_average=os.getloadavg()[0],
    )


def hardware_class(facts: MachineFacts) -> str:
    """Derive "cpu", "mps", or number and name of the GPUs ("1xH200") from the facts alone.

    A known GPU that is not whole says how: "1xH100-114SM", "8xH100-500W", "1xH200-MIG". Unlike GPUs are
    listed: "1xH100+1xL40S".
    """
    if facts.device_kind != "cuda":
        return facts.device_kind
    counts = Counter(_gpu_class(gpu) for gpu in facts.gpus)
    return "+".join(f"{count}x{name}" for name, count in sorted(counts.items()))


def usable_cores(limits: CgroupLimits) -> int:
    """Cores that this process may keep busy: its affinity, cut to whole cores of the container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(limits.cpu_cores or affinity)))


def watch_others(
    *, busy_share: float = 0.2, sample_s: float = 0.1, with_siblings: bool = True
) -> Callable[[], frozenset[int]]:
    """From now on until what it returns is called, which gives the ids of the processes that were busy.

    Those are others, our own children excepted, that used more than a share of one core.

    Args:
        busy_share: that share.
        sample_s: seconds to watch at least; what is left of them is waited for.
        with_siblings: count our parent's other children too; not where they are ranks of this run.
    """
    import psutil  # 25 ms, which a plan does not need

    root = psutil.Process(os.getpid() if with_siblings else os.getppid())
    ours = {root.pid, *(child.pid for child in root.children(recursive=True))}
    before, begun = _cpu_seconds(ours), time.perf_counter()

    def busy() -> frozenset[int]:
        time.sleep(max(0.0, begun + sample_s - time.perf_counter()))
        after = _cpu_seconds(ours)
        budget_s = busy_share * (time.perf_counter() - begun)
        return frozenset(
            key[0] for key in before.keys() & after.keys() if after[key] - before[key] > budget_s
        )

    return busy


def _cpu_seconds(excluded: set[int]) -> dict[tuple[int, float], float]:
    """CPU seconds by (pid, start time); processes that hide their times are not counted."""
    import psutil

    found = {}
    for process in psutil.process_iter(["cpu_times", "create_time"]):
        times = process.info["cpu_times"]
        if process.pid not in excluded and times is not None:
            found[process.pid, process.info["create_time"]] = times.user + times.system
    return found


def _choose(kind: Kind | None, found: GpuList) -> Kind:
    is_mac = sys.platform == "darwin" and platform.machine() == "arm64"
    if kind is None:
        return "cuda" if found.gpus else "mps" if is_mac else "cpu"
    if kind == "cpu":
        return "cpu"
    if kind == "cuda" and not found.gpus:
        raise PlanRefused(f"no CUDA device: {found.reason}", hint="use --device cpu, or mend the driver")
    if kind == "mps" and not is_mac:
        here = f"{platform.system()} {platform.machine()}"
        raise PlanRefused(f"MPS needs macOS on Apple silicon, this is {here}", hint="use --device cpu")
    return kind


def _gpu_class(gpu: Gpu) -> str:
    device = known_device(gpu.name)
    if device is None:
        bare_name = re.sub(r"^NVIDIA |\bGeForce ", "", gpu.name)
        return re.sub(r"[^A-Za-z0-9]+", "-", bare_name).strip("-")
    parts = [device.class_name]
    if gpu.is_mig:
        parts.append("MIG")
    elif gpu.num_sms and device.num_sms and gpu.num_sms != device.num_sms:
        parts.append(f"{gpu.num_sms}SM")
    if gpu.power_limit_w and device.power_limit_w and gpu.power_limit_w != device.power_limit_w:
        parts.append(f"{gpu.power_limit_w:.0f}W")
    return "-".join(parts)


def _processor(cpuinfo: Path) -> tuple[str, tuple[str, ...]]:
    """Model name and the instructions of `_FEATURES` it has."""
    if sys.platform == "darwin":
        flags = {name for name in _FEATURES if _sysctl(f"hw.optional.arm.FEAT_{name.upper()}") == b"\1\0\0\0"}
        brand = _sysctl("machdep.cpu.brand_string") or b"unknown"
        return brand.rstrip(b"\0").decode(), tuple(sorted(flags))
    # The first processor's block speaks for all: reading the whole table of 192 cores takes 100 ms and more.
    rows = {}
    if cpuinfo.exists():
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break
                key, _, value = line.partition(":")
                rows[key.strip()] = value.strip()
    flags = set((rows.get("flags") or rows.get("Features") or "").split())
    model = rows.get("model name") or platform.processor() or platform.machine()
    return model, tuple(sorted(flags.intersection(_FEATURES)))


def _sysctl(name: str) -> bytes | None:
    """Raw value of a macOS sysctl; None where the system does not know the name."""
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    sysctlbyname = ctypes.CDLL(None).sysctlbyname
    failed = sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else buffer.raw[: size.value]


def _versions() -> dict[str, str]:
    """Versions of the installed packages that compute or measure, from the names of their metadata folders.

    NAME-VERSION.dist-info, dashes of the name as underscores (PyPA, "Recording installed projects"); the
    first folder of sys.path wins. importlib.metadata finds the same, but parses each file as e-mail: 60 ms.
    """
    versions: dict[str, str] = {}
    for folder in filter(os.path.isdir, sys.path):
        for entry in sorted(os.listdir(folder)):
            stem, _, kind = entry.rpartition(".")
            if kind in ("dist-info", "egg-info"):
                name, _, version = stem.partition("-")
                versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version.partition("-")[0])
    return {name: versions[name] for name in _DISTRIBUTIONS if name in versions}
