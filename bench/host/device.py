"""The device of a run as a value: the one thing the rest of the project knows of CUDA, MPS and the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.errors import OutOfMemory, PlanRefused
from bench.host.backends import Backend, CpuBackend, CudaBackend, MpsBackend, PeakMemory
from bench.host.facts import Kind

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# How the allocators report exhaustion where they raise a bare RuntimeError (read in torch 2.13).
_OUT_OF_MEMORY_WORDS = (
    "CUDA out of memory",
    "MPS backend out of memory",
    "Invalid buffer size",  # MPS, one tensor beyond what Metal can hold
    "DefaultCPUAllocator: can't allocate memory",
)
_REQUESTED = re.compile(r"(?:[Tt]ried to allocate|Invalid buffer size:) ([\d.]+ \w+)")
_ALLOCATED = re.compile(r"(?:MPS allocated:|[Oo]f the allocated memory) ([\d.]+ \w+)")


@dataclass(frozen=True)
class Device:
    """An opened device; made by `open_device`."""

    kind: Kind
    torch_device: torch.device
    torch_version: str
    backend: Backend

    @property
    def name(self) -> str:
        """The device's name as its driver gives it."""
        return self.backend.name()

    @property
    def is_pinned_memory_allowed(self) -> bool:
        """Whether host batches may be page-locked: CUDA alone copies from them asynchronously."""
        return self.kind == "cuda"

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        self.backend.synchronize()

    def reset_peak_memory(self) -> None:
        """Start a new peak; `peak_memory().method` says where the system cannot."""
        self.backend.reset_peak_memory()

    def sample_memory(self) -> None:
        """Look at the memory in use; call after each backward pass: MPS before 2.13 keeps no peak."""
        self.backend.sample_memory()

    def peak_memory(self) -> PeakMemory:
        """The peak since the last reset and how it was read; call after the device did some work."""
        peak = self.backend.peak_memory()
        assert peak.bytes > 0, f"peak memory of 0 by {peak.method}: read before anything was allocated"
        return peak

    def empty_cache(self) -> None:
        """Return cached, unused device memory to the driver."""
        self.backend.empty_cache()

    def compute_dtype(self, name: str) -> torch.dtype:
        """The torch dtype of this name.

        Raises:
            PlanRefused: unknown, or this device would compute it wrongly or emulated.
        """
        if name not in _DTYPES:
            raise PlanRefused(f"no such compute dtype: {name!r}", hint=f"one of {', '.join(_DTYPES)}")
        if reason := self.backend.dtype_refusal(name):
            others = [other for other in _DTYPES if other != name and not self.backend.dtype_refusal(other)]
            raise PlanRefused(f"dtype {name} on {self.kind}: {reason}", hint=f"use {' or '.join(others)}")
        return _DTYPES[name]

    def compile_refusal(self) -> str | None:
        """Why torch.compile must not be used unasked here, or None."""
        return self.backend.compile_refusal()

    def compile_allowed(self) -> bool:
        """Whether torch.compile may be used without further proof."""
        return self.compile_refusal() is None

    def seed_everything(self, seed: int) -> None:
        """Seed the generators of `rng_state`."""
        torch.manual_seed(seed)
        self.backend.seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """State of every generator that this project draws from: torch's on the CPU and on the device."""
        return {"cpu": torch.get_rng_state(), **self.backend.rng_state()}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `rng_state` returned."""
        torch.set_rng_state(state["cpu"])
        self.backend.set_rng_state({name: tensor for name, tensor in state.items() if name != "cpu"})


def open_device(
    kind: Kind,
    *,
    index: int = 0,
    mps: Any = None,
    accelerator: Any = None,
    torch_version: str | None = None,
) -> Device:
    """Open a device for this process.

    Args:
        index: the CUDA device of this rank.
        mps, accelerator, torch_version: stand-ins for `torch.mps`, `torch.accelerator` and torch's version.

    Raises:
        PlanRefused: this torch has no such device here.
    """
    version = torch_version or str(torch.__version__)
    if kind == "cuda":
        _require(torch.cuda.is_available(), kind, version)
        return Device(kind, torch.device("cuda", index), version, CudaBackend(index))
    if kind == "mps":
        modules = (mps or torch.mps, accelerator or torch.accelerator)
        _require(mps is not None or torch.backends.mps.is_available(), kind, version)
        return Device(kind, torch.device("mps"), version, MpsBackend(*modules, version))
    assert kind == "cpu", f"no such device: {kind}"
    return Device(kind, torch.device("cpu"), version, CpuBackend())


def configure(
    device: Device,
    *,
    cpu_cores: int,
    deterministic: bool = False,
    tf32: bool = False,
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Set, once before training, what torch would choose unseen; returns the settings for the record.

    Args:
        cpu_cores: usable cores (`MachineFacts.cpu_cores`): torch counts the machine's, not the container's.
        tf32: round the inputs of float32 products to 10 bits on CUDA, where the plan asks for it.

    Raises:
        PlanRefused: deterministic CUDA without a fixed cuBLAS workspace.
    """
    from_backend = device.backend.configure(deterministic=deterministic, environment=environment or {})
    torch.set_num_threads(cpu_cores)
    flushes = torch.set_flush_denormal(True)  # a denormal costs a CPU some 100 cycles an operation
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # its timed choice of algorithms differs between runs
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)  # loads inductor: 2.7 s, measured with torch 2.13
    return {
        "cpu_threads": str(cpu_cores),
        "flush_denormal": str(flushes),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": str(deterministic),
        **from_backend,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception says that device or host memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def out_of_memory_error(
    error: BaseException, device: Device, *, device_sequences: int, predicted_peak_bytes: int
) -> OutOfMemory:
    """The error for a person: what was requested, what the plan predicted, and the next smaller batch."""
    assert is_out_of_memory(error), error
    requested, allocated = _REQUESTED.search(str(error)), _ALLOCATED.search(str(error))
    message = (
        f"out of memory on {device.name}: {requested[1] if requested else 'an unknown size'} requested"
        f"{f' with {allocated[1]} allocated' if allocated else ''}; the plan predicted a peak of "
        f"{predicted_peak_bytes / 2**30:.1f} GiB at batch.device_sequences = {device_sequences}"
    )
    smaller = (
        f"set batch.device_sequences = {device_sequences // 2}: more accumulation, the same optimisation"
    )
    least = "one sequence is the least: choose a smaller model or sequence length"
    return OutOfMemory(message, hint=smaller if device_sequences > 1 else least)


def _require(is_available: bool, kind: str, version: str) -> None:
    if not is_available:
        hint = "use --device cpu, or a torch built for the device"
        raise PlanRefused(f"torch {version} sees no {kind} device", hint=hint)
