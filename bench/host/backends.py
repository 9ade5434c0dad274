"""CUDA, MPS and the CPU behind one protocol: what each can do, what it must not do, and how it is asked.

`torch.mps` and `torch.accelerator` come in as module-like arguments, since they raise off a Mac.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor

from bench.errors import PlanRefused
from bench.host.half_products import multiply_in_float32, without_units
from bench.host.mps import PEAK_MEMORY_SINCE, half_precision_refusal, version_pair

# The setting that names the dtypes a CPU multiplies in float32, "" for none.
FLOAT32_PRODUCTS = "products_in_float32"


class PeakMemory(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The most memory in use since the last reset, with how it was read; `reserved_bytes` on CUDA alone."""

    bytes: int
    method: str
    reserved_bytes: int | None = None


class Backend(Protocol):
    """What `Device` asks of CUDA, MPS or the CPU."""

    def name(self) -> str: ...
    def synchronize(self) -> None: ...
    def reset_peak_memory(self) -> None: ...
    def sample_memory(self) -> None: ...
    def peak_memory(self) -> PeakMemory: ...
    def empty_cache(self) -> None: ...
    def seed(self, seed: int) -> None: ...
    def rng_state(self) -> dict[str, Tensor]: ...
    def set_rng_state(self, state: Mapping[str, Tensor]) -> None: ...
    def dtype_refusal(self, name: str) -> str | None: ...
    def compile_refusal(self) -> str | None: ...
    def configure(self, *, deterministic: bool, environment: Mapping[str, str]) -> dict[str, str]: ...


class CpuBackend:
    """The CPU: nothing is queued, memory is the process's."""

    def __init__(self) -> None:
        self._since = "the start of the process"

    def name(self) -> str:
        return "cpu"

    def synchronize(self) -> None:
        return

    def reset_peak_memory(self) -> None:
        """Start a new peak where Linux allows it: 5 written to clear_refs resets VmHWM, proc(5)."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # then the peak stays that of the whole process, and its method says so
        self._since = "the last reset"

    def sample_memory(self) -> None:
        return  # the kernel keeps the peak

    def peak_memory(self) -> PeakMemory:
        status = Path("/proc/self/status")
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
        if "VmHWM" in rows:
            peak = int(rows["VmHWM"].split()[0]) * 1024
            return PeakMemory(bytes=peak, method=f"peak RSS since {self._since} (VmHWM)")
        unit_bytes = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
        return PeakMemory(bytes=peak, method="peak RSS since the start of the process (ru_maxrss)")

    def empty_cache(self) -> None:
        return

    def seed(self, seed: int) -> None:
        return  # torch.manual_seed has seeded the CPU's generator

    def rng_state(self) -> dict[str, Tensor]:
        return {}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        assert not state, f"random state of another device: {sorted(state)}"

    def dtype_refusal(self, name: str) -> str | None:
        return None

    def compile_refusal(self) -> str | None:
        compilers = ("g++", "clang++", "c++")
        if any(map(shutil.which, compilers)):
            return None
        return f"torch.compile on the CPU needs a C++ compiler, none of {', '.join(compilers)} is installed"

    def configure(self, *, deterministic: bool, environment: Mapping[str, str]) -> dict[str, str]:
        # torch's compiler imports triton where it is installed, and generates C++ for a CPU all the same:
        # 87 MB of memory and 0.5 s for nothing (triton 3.7.1). None makes the import fail as if absent.
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
        emulated = without_units()
        multiply_in_float32(*emulated)
        return {FLOAT32_PRODUCTS: ", ".join(str(dtype).removeprefix("torch.") for dtype in emulated)}


class CudaBackend:
    """One CUDA device, the process's current one."""

    def __init__(self, index: int) -> None:
        self._index = index
        torch.cuda.set_device(index)

    def name(self) -> str:
        return torch.cuda.get_device_name(self._index)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._index)

    def sample_memory(self) -> None:
        return  # the allocator keeps the peak

    def peak_memory(self) -> PeakMemory:
        return PeakMemory(
            bytes=torch.cuda.max_memory_allocated(self._index),
            method="CUDA allocator peak",
            reserved_bytes=torch.cuda.max_memory_reserved(self._index),
        )

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def seed(self, seed: int) -> None:
        torch.cuda.manual_seed_all(seed)

    def rng_state(self) -> dict[str, Tensor]:
        return {"cuda": torch.cuda.get_rng_state(self._index)}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        torch.cuda.set_rng_state(state["cuda"], self._index)

    def dtype_refusal(self, name: str) -> str | None:
        major, minor = torch.cuda.get_device_capability(self._index)
        if name == "bfloat16" and major < 8:
            return f"bfloat16 is emulated below compute capability 8.0, {self.name()} has {major}.{minor}"
        if name == "float16" and (major, minor) < (5, 3):
            return f"float16 needs compute capability 5.3, {self.name()} has {major}.{minor}"
        return None

    def compile_refusal(self) -> str | None:
        major, minor = torch.cuda.get_device_capability(self._index)
        # Triton's own floor (github.com/triton-lang/triton README, "Compatibility").
        if major >= 8:
            return None
        return f"torch.compile needs compute capability 8.0, {self.name()} has {major}.{minor}"

    def configure(self, *, deterministic: bool, environment: Mapping[str, str]) -> dict[str, str]:
        if deterministic and environment.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
            # docs.nvidia.com/cuda/cublas, "Results reproducibility": fixed before CUDA starts
            raise PlanRefused(
                "deterministic CUDA runs need a fixed cuBLAS workspace",
                hint="export CUBLAS_WORKSPACE_CONFIG=:4096:8",
            )
        # Settings are parsed as a whole: a line of ours would drop every option that the user set.
        theirs = environment.get("PYTORCH_ALLOC_CONF") or environment.get("PYTORCH_CUDA_ALLOC_CONF")
        settings = theirs or "expandable_segments:True"
        if not theirs:
            torch._C._accelerator_setAllocatorSettings(settings)
        return {"cuda_allocator": settings}


class MpsBackend:
    """Apple's GPU through `torch.mps`; the policy and its sources stand in bench/host/mps.py."""

    def __init__(self, mps: Any, accelerator: Any, torch_version: str) -> None:
        self._mps = mps
        self._accelerator = accelerator
        self._torch_version = torch_version
        self._keeps_peak = version_pair(torch_version) >= PEAK_MEMORY_SINCE
        self._sampled_bytes = 0

    def name(self) -> str:
        return "mps"

    def synchronize(self) -> None:
        self._mps.synchronize()

    def reset_peak_memory(self) -> None:
        self._sampled_bytes = 0
        if self._keeps_peak:
            self._accelerator.reset_peak_memory_stats()

    def sample_memory(self) -> None:
        """Look at the memory now; the owner of the training loop calls this after each backward pass."""
        if not self._keeps_peak:
            self._sampled_bytes = max(self._sampled_bytes, self._mps.current_allocated_memory())

    def peak_memory(self) -> PeakMemory:
        if self._keeps_peak:
            return PeakMemory(bytes=self._accelerator.max_memory_allocated(), method="MPS allocator peak")
        self.sample_memory()
        return PeakMemory(bytes=self._sampled_bytes, method="MPS allocated memory, largest sample")

    def empty_cache(self) -> None:
        self._mps.empty_cache()

    def seed(self, seed: int) -> None:
        self._mps.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        return {"mps": self._mps.get_rng_state()}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        self._mps.set_rng_state(state["mps"])

    def dtype_refusal(self, name: str) -> str | None:
        return half_precision_refusal(self._torch_version) if name in ("bfloat16", "float16") else None

    def compile_refusal(self) -> str | None:
        return (
            "torch.compile on MPS is a prototype (pytorch #150121: NaN in #171764, 4-9x slower in #192551): "
            "only after its gradients equalled eager's on the first batch"
        )

    def configure(self, *, deterministic: bool, environment: Mapping[str, str]) -> dict[str, str]:
        # Above 1.0 macOS swaps instead of failing, and the clock measures the disk (default 1.7).
        self._mps.set_per_process_memory_fraction(1.0)
        return {"mps_memory_fraction": "1.0"}
