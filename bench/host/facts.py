"""What is known of a machine, as one value. Imports no torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from bench.host.power import Gpu

Kind = Literal["cuda", "mps", "cpu"]


class MachineFacts(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the machine is; `hardware_class` and every refusal of a plan follow from these facts.

    `device_memory_bytes` is one device's: GPU memory, a Mac's unified memory, or the usable RAM.
    """

    device_kind: Kind
    device_name: str
    device_count: int
    device_memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_reason: str | None = None
    driver_version: str | None = None
    cpu_model: str
    cpu_cores: int
    ram_bytes: int
    os: str
    os_version: str
    arch: str
    python_version: str
    features: tuple[str, ...] = ()
    hostname_sha256: str
    versions: dict[str, str]
    environment: dict[str, str]
    load_average: float
