"""The facts of a machine, and the class that follows from them."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from bench.errors import PlanRefused
from bench.host.facts import MachineFacts
from bench.host.machine import detect, hardware_class, watch_others
from bench.host.power import list_gpus
from tests.host.fakes import H100, gpu, machine

REPOSITORY = Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(bool(list_gpus().gpus), reason="this machine has a GPU")


def test_this_machine_is_measured() -> None:
    facts = detect("cpu")
    assert 1 <= facts.cpu_cores <= (os.cpu_count() or 1)
    assert 2**28 < facts.ram_bytes <= psutil.virtual_memory().total
    assert facts.device_memory_bytes == facts.ram_bytes
    assert facts.device_name == facts.cpu_model != ""
    assert facts.arch == platform.machine()
    assert facts.versions["msgspec"] == msgspec.__version__
    assert facts.hostname_sha256 == hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]
    assert hardware_class(facts) == "cpu"


def test_facts_survive_json() -> None:
    facts = detect("cpu", environment={"OMP_NUM_THREADS": "3"})
    assert msgspec.json.decode(msgspec.json.encode(facts), type=MachineFacts) == facts


def test_a_container_limits_what_is_counted(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{2**28}\n")
    (group / "cpu.max").write_text("100000 100000\n")
    facts = detect("cpu", root=tmp_path)
    assert (facts.ram_bytes, facts.device_memory_bytes, facts.cpu_cores) == (2**28, 2**28, 1)


@pytest.mark.skipif(sys.platform == "darwin", reason="reads a table of Linux")
def test_the_features_are_those_of_the_processor_table(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu amx_bf16 avx2\n\nmodel name\t: second\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    facts = detect("cpu", root=tmp_path)
    assert (facts.cpu_model, facts.features) == ("Some CPU", ("amx_bf16", "avx2"))


def test_settings_are_recorded_and_nothing_else_is() -> None:
    settings = {"PYTORCH_ALLOC_CONF": "a", "TRITON_INTERPRET": "1", "TORCH_LOGS": "x", "OMP_NUM_THREADS": "2"}
    others = {"HOME": "/root", "SECRET_TOKEN": "x", "PATH": "/bin", "MY_PYTORCH_": "x"}
    others["TORCHELASTIC_ERROR_FILE"] = "/somewhere/error.json"
    assert detect("cpu", environment=settings | others).environment == settings


@no_gpu
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanRefused, match="no CUDA device") as caught:
        detect("cuda")
    assert caught.value.hint


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_mps_is_refused_off_a_mac() -> None:
    with pytest.raises(PlanRefused, match="Apple silicon"):
        detect("mps")


@no_gpu
@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_a_plain_machine_is_a_cpu_and_says_why() -> None:
    facts = detect()
    assert facts.device_kind == "cpu"
    assert facts.gpu_reason


@no_gpu
def test_detection_is_quick() -> None:
    times_s = []
    for _ in range(5):
        begun = time.perf_counter()
        detect()
        times_s.append(time.perf_counter() - begun)
    assert min(times_s) < 0.060


def test_no_torch_is_loaded_to_know_the_machine() -> None:
    modules = "bench.host.machine, bench.host.peaks, bench.host.power, bench.host.clock, bench.host.mps"
    program = f"import sys, {modules}; bench.host.machine.detect('cpu'); print('torch' in sys.modules)"
    child = [sys.executable, "-W", "error", "-c", program]
    found = subprocess.run(child, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([gpu()] * 8, "8xH100"),
        ([gpu(num_sms=132, power_limit_w=700.0)], "1xH100"),
        ([gpu("NVIDIA H200")], "1xH200"),
        ([gpu("NVIDIA H100 PCIe")], "1xH100-PCIe"),
        ([gpu("NVIDIA A100 80GB PCIe")] * 2, "2xA100-PCIe"),
        ([gpu("NVIDIA GeForce RTX 4090")], "1xRTX4090"),
        ([gpu("NVIDIA GeForce RTX 4090 Laptop GPU")], "1xRTX-4090-Laptop-GPU"),
        ([gpu("NVIDIA H100 NVL")], "1xH100-NVL"),
        ([gpu(num_sms=114)], "1xH100-114SM"),
        ([gpu(power_limit_w=500.0)] * 8, "8xH100-500W"),
        ([gpu(is_mig=True, num_sms=16)], "1xH100-MIG"),
        ([gpu("NVIDIA H200 MIG 1g.18gb", is_mig=True)], "1xH200-MIG-1g-18gb"),
        ([gpu(), gpu("NVIDIA L40S"), gpu()], "2xH100+1xL40S"),
    ],
)
def test_the_class_follows_from_the_facts(gpus: list, expected: str) -> None:  # type: ignore[type-arg]
    assert hardware_class(machine(*gpus)) == expected


def test_other_kinds_are_their_own_class() -> None:
    assert hardware_class(machine(kind="mps", name="Apple M4 Max")) == "mps"
    assert hardware_class(machine(kind="cpu", name=H100)) == "cpu"


def test_a_busy_neighbour_is_seen_and_a_child_is_not() -> None:
    spin = f"{sys.executable} -c 'while True: pass'"
    # A shell that ends at once leaves its background process to another parent: a neighbour, not our child.
    shell = ["/bin/sh", "-c", f"{spin} >/dev/null 2>&1 & echo $!"]
    neighbour_id = int(subprocess.run(shell, capture_output=True, text=True, check=True).stdout)
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        busy = watch_others(sample_s=0.2)()
        assert neighbour_id in busy
        assert child.pid not in busy
    finally:
        child.kill()
        child.wait()
        psutil.Process(neighbour_id).kill()
