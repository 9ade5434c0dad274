"""What NVIDIA's management library says: the GPUs, the energy they used, their clocks, why they slowed.

The only file that loads NVML. A missing library, driver or reading is a reason string, never a silent zero.
Names and units as in the NVML API reference (docs.nvidia.com/deploy/nvml-api).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec

# CUDA cores of one multiprocessor by compute capability (CUDA C++ Programming Guide, "Compute Capabilities").
_CORES_PER_SM = {
    "7.0": 64, "7.5": 64, "8.0": 64, "8.6": 128, "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128, "10.3": 128,
    "11.0": 128, "12.0": 128, "12.1": 128,
}  # fmt: skip

# nvmlClocksEventReasons; the idle bit and the user's own clock settings are no slow-down.
_REASON_BITS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
}
_HEX_DIGITS = 12


class Gpu(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One GPU as its driver describes it; None is a reading that the driver refused, named in `unread`."""

    name: str
    uuid_sha256: str
    memory_bytes: int
    compute_capability: str | None
    num_sms: int | None
    power_limit_w: float | None
    is_mig: bool
    unread: tuple[str, ...] = ()


class GpuList(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The GPUs that this process may use; `reason` says why there are none."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    reason: str | None = None


class Clocks(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Clocks of one GPU at one moment."""

    sm_mhz: int | None
    memory_mhz: int | None


class Energy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Energy of all visible GPUs over a region, with what their clocks did meanwhile."""

    joules: float | None
    method: str
    reason: str | None
    clocks_start: tuple[Clocks, ...] = ()
    clocks_end: tuple[Clocks, ...] = ()
    throttle_reasons: tuple[str, ...] = ()
    num_samples: int = 0


def list_gpus(visible: str | None = None, *, nvml: Any = None) -> GpuList:
    """The GPUs CUDA would show under `visible`, the value of CUDA_VISIBLE_DEVICES (None: all of them)."""
    with _session(nvml) as (library, reason):
        if library is None:
            return GpuList(reason=reason)
        driver_version = str(library.nvmlSystemGetDriverVersion())
        handles, reason = _handles(library, visible)
        gpus = tuple(_describe(library, handle) for handle in handles)
        return GpuList(gpus=gpus, driver_version=driver_version, reason=reason)


class EnergyMeter:
    """Context manager: joules by the driver's energy counter; `energy` holds the result after the block.

    Call `sample()` now and then inside: throttling is only seen at the moments looked at.
    """

    energy: Energy

    def __init__(self, visible: str | None = None, *, nvml: Any = None) -> None:
        self._visible = visible
        self._session = _session(nvml)
        self._handles: list[Any] = []
        self._reasons = 0
        self._num_samples = 0

    def __enter__(self) -> EnergyMeter:
        self._library, self._reason = self._session.__enter__()
        if self._library is not None:
            self._handles, self._reason = _handles(self._library, self._visible)
        self._clocks_start = self._clocks()
        self._joules_start = self._joules()
        self.sample()
        return self

    def sample(self) -> None:
        """Add the present slow-down reasons to those seen."""
        for handle in self._handles:
            self._reasons |= self._read("nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
        self._num_samples += bool(self._handles)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sample()
        joules = self._used()
        self.energy = Energy(
            joules=joules,
            method="none" if joules is None else "nvml total energy counter",
            reason=self._reason,
            clocks_start=self._clocks_start,
            clocks_end=self._clocks(),
            throttle_reasons=tuple(name for bit, name in _REASON_BITS.items() if self._reasons & bit),
            num_samples=self._num_samples,
        )
        self._session.__exit__(kind, error, trace)

    def _used(self) -> float | None:
        start_j, end_j = self._joules_start, self._joules()
        if start_j is None or end_j is None:
            return None
        if end_j < start_j:
            self._reason = "the energy counter went backwards: the driver was reloaded during the run"
            return None
        return end_j - start_j

    def _joules(self) -> float | None:
        readings = [self._read("nvmlDeviceGetTotalEnergyConsumption", handle) for handle in self._handles]
        return None if None in readings or not readings else sum(readings) / 1e3  # the counter is in mJ

    def _clocks(self) -> tuple[Clocks, ...]:
        if self._library is None:
            return ()
        sm, memory = self._library.NVML_CLOCK_SM, self._library.NVML_CLOCK_MEM
        return tuple(
            Clocks(
                sm_mhz=self._read("nvmlDeviceGetClockInfo", handle, sm),
                memory_mhz=self._read("nvmlDeviceGetClockInfo", handle, memory),
            )
            for handle in self._handles
        )

    def _read(self, query: str, *arguments: Any) -> Any:
        value, refusal = _ask(self._library, query, *arguments)
        if refusal and self._reason is None:
            self._reason = refusal
        return value


@contextmanager
def _session(nvml: Any) -> Iterator[tuple[Any, str | None]]:
    """The opened library, or None and why it could not be opened."""
    library, reason = (nvml, None) if nvml is not None else _load()
    if library is not None:
        _, reason = _ask(library, "nvmlInit")
    if library is None or reason is not None:
        yield None, reason
        return
    try:
        yield library, None
    finally:
        library.nvmlShutdown()


def _load() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("pynvml"), None
    except ModuleNotFoundError:
        return None, "NVML cannot be asked: the package nvidia-ml-py is not installed"


def _ask(library: Any, query: str, *arguments: Any) -> tuple[Any, str | None]:
    """(value, None), or (None, why the driver refused): NVML reports functions that a driver lacks too."""
    try:
        return getattr(library, query)(*arguments), None
    except library.NVMLError as error:
        return None, f"{query.removeprefix('nvml')}: {error}"


def _handles(library: Any, visible: str | None) -> tuple[list[Any], str | None]:
    """Handles by CUDA_VISIBLE_DEVICES, cut at its first invalid entry, and why there are none.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables". CUDA may number unlike GPUs in another
    order than NVML; on a machine of equal GPUs the order says nothing.
    """
    count = library.nvmlDeviceGetCount()
    entries = [str(index) for index in range(count)] if visible is None else visible.split(",")
    handles: list[Any] = []
    refusal: str | None = None
    for entry in (entry.strip() for entry in entries):
        handle, refusal = _handle(library, entry)
        if refusal:
            break
        handles.append(handle)
    if handles:
        return handles, None
    return (
        [],
        f"none of {count} GPUs is visible with CUDA_VISIBLE_DEVICES={visible!r}: {refusal or 'no device'}",
    )


def _handle(library: Any, entry: str) -> tuple[Any, str | None]:
    if entry.isdecimal():
        return _ask(library, "nvmlDeviceGetHandleByIndex", int(entry))
    if entry.startswith(("GPU-", "MIG-")):
        return _ask(library, "nvmlDeviceGetHandleByUUID", entry)
    return None, f"{entry!r} is no device"


def _describe(library: Any, handle: Any) -> Gpu:
    unread: list[str] = []

    def read(query: str, convert: Callable[[Any], Any]) -> Any:
        value, refusal = _ask(library, query, handle)
        if refusal:
            unread.append(refusal)
        return None if refusal else convert(value)

    capability = read("nvmlDeviceGetCudaComputeCapability", lambda pair: f"{pair[0]}.{pair[1]}")
    num_cores = read("nvmlDeviceGetNumGpuCores", int)
    per_sm = _CORES_PER_SM.get(capability)
    uuid = str(library.nvmlDeviceGetUUID(handle))
    mig_mode, _ = _ask(library, "nvmlDeviceGetMigMode", handle)  # refused by a GPU that cannot be split
    return Gpu(
        name=str(library.nvmlDeviceGetName(handle)),
        uuid_sha256=hashlib.sha256(uuid.encode()).hexdigest()[:_HEX_DIGITS],
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=capability,
        num_sms=num_cores // per_sm if num_cores is not None and per_sm is not None else None,
        power_limit_w=read("nvmlDeviceGetPowerManagementLimit", lambda milliwatts: milliwatts / 1e3),
        is_mig=uuid.startswith("MIG-") or bool(mig_mode and mig_mode[0]),
        unread=tuple(unread),
    )
