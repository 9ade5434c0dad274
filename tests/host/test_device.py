"""Devices: the CPU for real, MPS by a stand-in of `torch.mps` at each version that a gate tells apart."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from bench.errors import OutOfMemory, PlanRefused
from bench.host.clock import Ledger
from bench.host.device import Device, configure, is_out_of_memory, open_device, out_of_memory_error
from tests.host.fakes import FakeMps

VERSIONS = ("2.11.0", "2.12.1", "2.13.0", "2.14.0")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="resets the peak by Linux's proc")


def open_fake_mps(version: str) -> tuple[Device, FakeMps, SimpleNamespace]:
    mps = FakeMps()
    allocator = SimpleNamespace(peak_bytes=7000)
    allocator.max_memory_allocated = lambda: allocator.peak_bytes
    allocator.reset_peak_memory_stats = lambda: setattr(allocator, "peak_bytes", mps.allocated_bytes)
    if version < "2.13":  # there torch.accelerator knows nothing of MPS
        allocator = SimpleNamespace()
    return open_device("mps", mps=mps, accelerator=allocator, torch_version=version), mps, allocator


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Give other tests the settings back that `configure` changes for a whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    tf32 = torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
    torch.set_flush_denormal(False)


def test_the_peak_of_the_cpu_is_real_and_grows() -> None:
    device = open_device("cpu")
    before = device.peak_memory()
    assert before.bytes > 2**20
    block = torch.ones(before.bytes // 4 + 64 * 2**20 // 4)  # more than all that was ever in use
    assert device.peak_memory().bytes >= before.bytes + block.nbytes // 4


@on_linux
def test_the_peak_of_the_cpu_can_be_reset() -> None:
    """Of memory that no malloc keeps: what a command of this process may have told it to do."""
    device = open_device("cpu")
    with mmap.mmap(-1, 2**29) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    high = device.peak_memory().bytes
    device.reset_peak_memory()
    peak = device.peak_memory()
    assert 0 < peak.bytes <= high - 2**28
    assert peak.method == "peak RSS since the last reset (VmHWM)"


@pytest.mark.parametrize("version", VERSIONS)
def test_mps_is_synchronised_on_both_sides_of_a_span(version: str) -> None:
    device, mps, _ = open_fake_mps(version)
    ledger = Ledger(synchronize=device.synchronize)
    with ledger.span("train"):
        assert mps.num_synchronized == 1
    assert mps.num_synchronized == 2


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1"])
def test_before_2_13_the_peak_of_mps_is_the_largest_sample(version: str) -> None:
    device, mps, _ = open_fake_mps(version)
    for mps.allocated_bytes in (10, 5000, 20):
        device.sample_memory()
    peak = device.peak_memory()
    assert (peak.bytes, peak.method) == (5000, "MPS allocated memory, largest sample")
    device.reset_peak_memory()
    assert device.peak_memory().bytes == 20


@pytest.mark.parametrize("version", ["2.13.0", "2.14.0"])
def test_since_2_13_the_peak_of_mps_is_its_allocators(version: str) -> None:
    device, mps, _ = open_fake_mps(version)
    mps.allocated_bytes = 10
    peak = device.peak_memory()
    assert (peak.bytes, peak.method) == (7000, "MPS allocator peak")
    device.reset_peak_memory()
    assert device.peak_memory().bytes == 10


def test_a_peak_of_zero_is_never_reported() -> None:
    device, _, _ = open_fake_mps("2.12.1")
    with pytest.raises(AssertionError, match="peak memory of 0"):
        device.peak_memory()


@pytest.mark.parametrize(
    ("version", "is_refused"), [("2.11.0", True), ("2.12.1", True), ("2.13.0", False), ("2.14.0", False)]
)
def test_half_precision_on_mps_starts_at_2_13(version: str, is_refused: bool) -> None:
    device, _, _ = open_fake_mps(version)
    assert device.compute_dtype("float32") == torch.float32
    if is_refused:
        for name in ("bfloat16", "float16"):
            with pytest.raises(PlanRefused, match="#195910") as caught:
                device.compute_dtype(name)
            assert caught.value.hint == "use float32"
    else:
        assert device.compute_dtype("bfloat16") == torch.bfloat16
        assert device.compute_dtype("float16") == torch.float16


@pytest.mark.parametrize("name", ["float64", "fp32"])
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        open_device("cpu").compute_dtype(name)
    assert name in caught.value.message
    assert caught.value.hint


def test_what_mps_may_not_do_unasked() -> None:
    device, _, _ = open_fake_mps("2.14.0")
    assert not device.compile_allowed()
    assert "prototype" in (device.compile_refusal() or "")
    assert not device.is_pinned_memory_allowed


def test_mps_may_not_swap(torch_settings: None) -> None:
    device, mps, _ = open_fake_mps("2.14.0")
    assert configure(device, cpu_cores=1)["mps_memory_fraction"] == "1.0"
    assert mps.memory_fraction == 1.0


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has the device")
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_torch_does_not_see_is_refused(kind: str) -> None:
    with pytest.raises(PlanRefused, match=f"sees no {kind} device"):
        open_device(kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_random_state_is_restored(kind: str) -> None:
    device, mps = (open_device("cpu"), None) if kind == "cpu" else open_fake_mps("2.14.0")[:2]
    generators = [None] if mps is None else [None, mps.generator]

    def draw() -> list[float]:
        return [torch.rand((), generator=generator).item() for generator in generators]

    device.seed_everything(5)
    state, first = device.rng_state(), draw()
    assert draw() != first
    device.set_rng_state(state)
    assert draw() == first
    device.seed_everything(5)
    assert draw() == first


def test_settings_are_set_and_told(torch_settings: None) -> None:
    told = configure(open_device("cpu"), cpu_cores=1, deterministic=True)
    assert told["float32_matmul_precision"] == torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.allow_tf32
    denormal = torch.full((64,), 1e-38) * 1e-3
    assert (denormal == 0).all().item() is (told["flush_denormal"] == "True")


def test_reduced_precision_is_asked_for(torch_settings: None) -> None:
    told = configure(open_device("cpu"), cpu_cores=1, tf32=True)
    assert told["float32_matmul_precision"] == "high"


def out_of_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)  # more than any address space holds
    return caught.value


def test_the_cpu_really_runs_out_of_memory() -> None:
    error = out_of_memory()
    assert is_out_of_memory(error)
    told = out_of_memory_error(error, open_device("cpu"), device_sequences=32, predicted_peak_bytes=2**31)
    assert isinstance(told, OutOfMemory)
    assert f"{2**48} bytes requested" in told.message
    assert "2.0 GiB at batch.device_sequences = 32" in told.message
    assert "batch.device_sequences = 16" in told.hint


def test_a_single_sequence_cannot_be_halved() -> None:
    told = out_of_memory_error(
        out_of_memory(), open_device("cpu"), device_sequences=1, predicted_peak_bytes=2**30
    )
    assert "smaller model" in told.hint


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
            "which 1.00 GiB is free. Of the allocated memory 77.02 GiB is allocated by PyTorch",
            ("2.00 GiB requested", "77.02 GiB allocated"),
        ),
        (
            "MPS backend out of memory (MPS allocated: 20.48 GiB, other allocations: 1 GiB, max allowed: 32 "
            "GiB). Tried to allocate 12.00 GiB on private pool.",
            ("12.00 GiB requested", "20.48 GiB allocated"),
        ),
        ("Invalid buffer size: 40.00 GiB", ("40.00 GiB requested",)),
    ],
)
def test_the_numbers_of_each_allocator_are_found(text: str, numbers: tuple[str, ...]) -> None:
    told = out_of_memory_error(
        RuntimeError(text), open_device("cpu"), device_sequences=2, predicted_peak_bytes=1
    )
    assert all(number in told.message for number in numbers)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("CUDA out of memory"), KeyError()]
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
