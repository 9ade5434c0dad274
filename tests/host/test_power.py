"""GPUs, energy, clocks: the absent driver for real, a present one by a stand-in of its library."""

from __future__ import annotations

import pytest

from bench.host.power import Energy, EnergyMeter, list_gpus
from tests.host.fakes import H100, FakeNvml

has_gpu = bool(list_gpus().gpus)


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_without_a_driver_the_reason_is_told() -> None:
    found = list_gpus()
    assert found.gpus == ()
    assert found.reason
    with EnergyMeter() as meter:
        meter.sample()
    assert (meter.energy.joules, meter.energy.method) == (None, "none")
    assert meter.energy.reason == found.reason


@pytest.mark.skipif(not has_gpu, reason="needs an NVIDIA driver")
def test_a_real_driver_counts_energy() -> None:
    with EnergyMeter() as meter:
        pass
    assert meter.energy.joules is not None
    assert meter.energy.joules >= 0


def test_a_gpu_is_described_as_its_driver_describes_it() -> None:
    nvml = FakeNvml([H100])
    found = list_gpus(nvml=nvml)
    (gpu,) = found.gpus
    assert (gpu.name, gpu.num_sms, gpu.power_limit_w, gpu.compute_capability) == (H100, 132, 700.0, "9.0")
    assert (found.driver_version, found.reason, gpu.unread) == ("580.159.03", None, ())
    assert "GPU-0" not in gpu.uuid_sha256
    assert nvml.num_open == 0


def test_a_refused_reading_is_named() -> None:
    (gpu,) = list_gpus(nvml=FakeNvml([H100], refused=("nvmlDeviceGetPowerManagementLimit",))).gpus
    assert gpu.power_limit_w is None
    assert gpu.unread == ("DeviceGetPowerManagementLimit: Not Supported",)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["a", "b", "c"]),
        ("", []),
        ("-1", []),
        ("2", ["c"]),
        ("2,0", ["c", "a"]),
        ("1,7,0", ["b"]),  # CUDA stops at the first entry that names no device
        ("GPU-1", ["b"]),
        ("GPU-9,0", []),
    ],
)
def test_the_visible_gpus_are_cudas(visible: str | None, names: list[str]) -> None:
    found = list_gpus(visible, nvml=FakeNvml(["a", "b", "c"]))
    assert [gpu.name for gpu in found.gpus] == names
    assert (found.reason is None) is bool(names)


def measure(nvml: FakeNvml, used_mj: int, reasons: int = 0) -> Energy:
    with EnergyMeter(nvml=nvml) as meter:
        nvml.energy_mj += used_mj
        nvml.reasons = reasons
        meter.sample()
        nvml.reasons = 0
    assert nvml.num_open == 0
    return meter.energy


def test_energy_is_the_difference_of_the_counters_of_all_gpus() -> None:
    energy = measure(FakeNvml([H100, H100]), used_mj=1_500)
    assert (energy.joules, energy.reason) == (3.0, None)
    assert [(clocks.sm_mhz, clocks.memory_mhz) for clocks in energy.clocks_end] == [(1980, 2619)] * 2


def test_throttling_in_the_middle_is_kept() -> None:
    energy = measure(FakeNvml([H100]), used_mj=1, reasons=0x1 | 0x4 | 0x40)
    assert energy.throttle_reasons == ("power cap", "hardware thermal slowdown")
    assert energy.num_samples == 3


@pytest.mark.parametrize(
    ("nvml", "used_mj", "word"),
    [
        (FakeNvml([H100]), -1, "backwards"),
        (FakeNvml([H100], refused=("nvmlDeviceGetTotalEnergyConsumption",)), 1, "Not Supported"),
        (FakeNvml([]), 1, "none of 0 GPUs"),
        (FakeNvml([H100], refused=("nvmlDeviceGetHandleByIndex",)), 1, "Not Supported"),
    ],
)
def test_unknown_energy_is_none_with_its_reason(nvml: FakeNvml, used_mj: int, word: str) -> None:
    energy = measure(nvml, used_mj)
    assert energy.joules is None
    assert word in (energy.reason or "")
