"""Declared peaks of known GPUs, and the model FLOPs utilisation they allow; n/a for every other device."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.errors import VerificationFailed

if TYPE_CHECKING:
    from bench.host.facts import MachineFacts
    from bench.host.power import Gpu

_TABLE = Path(__file__).with_name("peaks.toml")


class KnownDevice(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One entry of peaks.toml."""

    name: str
    class_name: str = msgspec.field(name="class")
    num_sms: int | None = None
    power_limit_w: float | None = None
    memory_bytes: int | None = None
    bytes_per_s: float | None = None  # of the memory
    link_bytes_per_s: float | None = None  # to the other devices of its machine, in one direction
    network_bytes_per_s: float | None = None  # to other machines, in one direction
    source: str
    flops_per_s: dict[str, float]


class Peak(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Dense peak of all devices of a run together."""

    flops_per_s: float
    dtype: str
    num_devices: int
    source: str


class _Table(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    devices: tuple[KnownDevice, ...]


def known_device(name: str) -> KnownDevice | None:
    """The entry whose pattern matches this whole device name."""
    return next((device for device in _devices() if re.fullmatch(device.name, name)), None)


def device_of_class(class_name: str) -> KnownDevice | None:
    """The entry of this class name, such as H100."""
    return next((device for device in _devices() if device.class_name == class_name), None)


def declared_peak(facts: MachineFacts, dtype: str, *, num_devices: int | None = None) -> Peak | None:
    """The peak of `num_devices` (default: all) of this machine's devices, or None where none is declared.

    None as well for a part whose multiprocessors are not the declared number, and for MIG slices: the
    whole device's peak would understate their MFU.
    """
    device = known_device(facts.device_name) if facts.device_kind == "cuda" else None
    if device is None or dtype not in device.flops_per_s:
        return None
    if not all(_is_whole(gpu, facts.device_name, device.num_sms) for gpu in facts.gpus):
        return None
    count = facts.device_count if num_devices is None else num_devices
    return Peak(
        flops_per_s=device.flops_per_s[dtype] * count, dtype=dtype, num_devices=count, source=device.source
    )


def mfu(flops_per_s: float, peak: Peak | None) -> float | None:
    """Achieved over declared FLOP/s in [0, 1]; None (n/a) without a declared peak.

    Raises:
        VerificationFailed: above 1, which no device reaches: the FLOP count, the clock or the peak is wrong.
    """
    if peak is None:
        return None
    assert flops_per_s >= 0, flops_per_s
    share = flops_per_s / peak.flops_per_s
    if share > 1.0:
        raise VerificationFailed(
            f"MFU {share:.1%}: {flops_per_s:.3g} FLOP/s claimed where {peak.num_devices} device(s) peak at "
            f"{peak.flops_per_s:.3g} in {peak.dtype} ({peak.source})",
            hint="check the FLOP count, the synchronisation of the timed region and bench/host/peaks.toml",
        )
    return share


def _is_whole(gpu: Gpu, name: str, num_sms: int | None) -> bool:
    has_all_sms = gpu.num_sms is None or num_sms is None or gpu.num_sms == num_sms
    return gpu.name == name and not gpu.is_mig and has_all_sms


@cache
def _devices() -> tuple[KnownDevice, ...]:
    return msgspec.toml.decode(_TABLE.read_bytes(), type=_Table).devices
