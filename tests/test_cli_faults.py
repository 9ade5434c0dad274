"""What goes wrong outside a command's own concern: outputs, addresses, and faults of bench itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli
from tests.records.sample import ROOT
from tests.test_cli import failed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_an_error_of_one_line() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "bench", "show", "submissions/quick.toml"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: No space left on device\nhint: ")


def test_a_closed_output_is_no_error() -> None:
    command = f"exec {sys.executable} -m bench check submissions/quick.toml >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_of_our_own_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr("bench.spec.submission.load", broken)
    words = ["show", "submissions/quick.toml"]
    assert failed(capsys, cli.FAULT, *words) == r"error: a fault of bench itself: KeyError: 'x\ny'"
    with pytest.raises(KeyError):
        cli.main([*words, "--debug"])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HF_TOKEN", "hf_secret\nhf_other", "HF_TOKEN holds"),
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT ="),
        ("HF_ENDPOINT", "http://127.0.0.1:abc", "HF_ENDPOINT ="),
        ("HF_ENDPOINT", "http://a b", "HF_ENDPOINT ="),
    ],
)
def test_a_hub_that_is_none_is_told_before_it_is_asked(
    name: str, value: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    line = failed(capsys, 2, "data", "pin", "climbmix")
    assert told in line
    assert "secret" not in line


def test_one_device_is_dealt_to_no_machines(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "submissions/quick.toml", "--device", "cpu", "--nodes", "2", "--rendezvous", "a:1"]
    assert "a track of one device" in failed(capsys, 3, *words)
