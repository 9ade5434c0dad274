"""Stand-ins for what these tests cannot have: NVIDIA's library and driver, Apple's GPU; and sample facts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from bench.host.facts import MachineFacts
from bench.host.power import Gpu

H100 = "NVIDIA H100 80GB HBM3"


class NvmlError(Exception):
    """As pynvml.NVMLError: every refusal of the driver."""


class FakeNvml:
    """NVML's functions over a list of GPUs, with an energy counter that runs when told."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(
        self, names: list[str], *, num_cores: int = 132 * 128, refused: tuple[str, ...] = ()
    ) -> None:
        self.names = names
        self.num_cores = num_cores
        self.refused = refused
        self.energy_mj = 5_000_000
        self.reasons = 0
        self.num_open = 0

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "refused"):

            def refuse(*arguments: object) -> None:
                raise NvmlError("Not Supported")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.names):
            raise NvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        uuids = [self.nvmlDeviceGetUUID(index) for index in range(len(self.names))]
        if uuid not in uuids:
            raise NvmlError("Not Found")
        return uuids.index(uuid)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * 2**30)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> list[int]:
        return [9, 0]

    def nvmlDeviceGetNumGpuCores(self, handle: int) -> int:
        return self.num_cores

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [0, 0]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self.energy_mj

    def nvmlDeviceGetClockInfo(self, handle: int, domain: int) -> int:
        return {1: 1980, 2: 2619}[domain]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.reasons


class FakeMps:
    """`torch.mps` with a count of synchronisations; like the real one it keeps no peak of its own."""

    def __init__(self) -> None:
        self.num_synchronized = 0
        self.allocated_bytes = 0
        self.memory_fraction = 0.0
        self.generator = torch.Generator()

    def synchronize(self) -> None:
        self.num_synchronized += 1

    def current_allocated_memory(self) -> int:
        return self.allocated_bytes

    def empty_cache(self) -> None:
        self.allocated_bytes = 0

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.memory_fraction = fraction

    def manual_seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)


def gpu(name: str = H100, **changes: Any) -> Gpu:
    facts: dict[str, Any] = {
        "name": name,
        "uuid_sha256": "0" * 12,
        "memory_bytes": 80 * 2**30,
        "compute_capability": "9.0",
        "num_sms": None,
        "power_limit_w": None,
        "is_mig": False,
    }
    return Gpu(**(facts | changes))


def machine(*gpus: Gpu, kind: str = "cuda", name: str | None = None) -> MachineFacts:
    return MachineFacts(
        device_kind=kind,  # type: ignore[arg-type]
        device_name=name or gpus[0].name,
        device_count=len(gpus) or 1,
        device_memory_bytes=80 * 2**30,
        gpus=gpus,
        cpu_model="a processor",
        cpu_cores=8,
        ram_bytes=2**35,
        os="Linux",
        os_version="6.1",
        arch="x86_64",
        python_version="3.11.7",
        hostname_sha256="0" * 12,
        versions={},
        environment={},
        load_average=0.0,
    )
