"""Declared peaks: right for whole known devices, n/a for all others, and never an MFU above one."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.errors import VerificationFailed
from bench.host.peaks import declared_peak, known_device, mfu
from tests.host.fakes import H100, gpu, machine


@pytest.mark.parametrize(
    ("name", "dtype", "flops_per_s"),
    [
        (H100, "bfloat16", 989e12),
        (H100, "float8", 1979e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362.05e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("NVIDIA B200", "bfloat16", 2250e12),
    ],
)
def test_known_devices(name: str, dtype: str, flops_per_s: float) -> None:
    peak = declared_peak(machine(gpu(name)), dtype)
    assert peak is not None
    assert peak.flops_per_s == flops_per_s
    assert peak.source


@given(name=st.text(st.characters(codec="ascii")))
def test_a_name_of_no_entry_has_no_peak(name: str) -> None:
    assume(not name.startswith("NVIDIA"))
    assert declared_peak(machine(gpu(name)), "bfloat16") is None


@pytest.mark.parametrize("suffix", [" Laptop GPU", " MIG 1g.18gb", " NVL", "-2", "\n"])
@pytest.mark.parametrize("name", [H100, "NVIDIA H200", "NVIDIA GeForce RTX 4090", "NVIDIA L4"])
def test_a_name_is_matched_whole(name: str, suffix: str) -> None:
    assert known_device(name) is not None
    assert known_device(name + suffix) is None
    assert known_device("x" + name) is None


@pytest.mark.parametrize(
    "facts",
    [
        machine(gpu(num_sms=114)),
        machine(gpu(is_mig=True)),
        machine(gpu(), gpu("NVIDIA L40S")),
        machine(kind="mps", name="Apple M4 Max"),
        machine(kind="cpu", name=H100),
    ],
)
def test_what_is_not_the_whole_device_has_no_peak(facts) -> None:  # type: ignore[no-untyped-def]
    assert declared_peak(facts, "bfloat16") is None


def test_an_undeclared_dtype_has_no_peak() -> None:
    assert declared_peak(machine(gpu("NVIDIA A100-SXM4-80GB")), "float8") is None


def test_the_peak_grows_with_the_devices() -> None:
    facts = machine(*[gpu()] * 8)
    peaks = [declared_peak(facts, "bfloat16", num_devices=count) for count in (None, 8, 1)]
    assert [peak and peak.flops_per_s for peak in peaks] == [8 * 989e12, 8 * 989e12, 989e12]


@given(share=st.floats(0, 1))
def test_mfu_is_the_share_of_the_peak(share: float) -> None:
    peak = declared_peak(machine(gpu()), "bfloat16")
    assert mfu(share * 989e12, peak) == pytest.approx(share)


@given(excess=st.floats(1.001, 100))
def test_mfu_above_one_is_an_error(excess: float) -> None:
    peak = declared_peak(machine(gpu()), "bfloat16")
    with pytest.raises(VerificationFailed, match="MFU"):
        mfu(excess * 989e12, peak)


def test_mfu_without_a_peak_is_not_available() -> None:
    assert mfu(1e30, None) is None
