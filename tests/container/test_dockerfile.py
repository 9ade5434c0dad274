"""What the image is made from, read without an engine: one base, locked packages, a user who owns nothing."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", "")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", INSTRUCTIONS, re.MULTILINE)


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_every_stage_stands_on_the_one_base() -> None:
    assert {line.split()[0] for line in instructions("FROM")} == {"${BASE_IMAGE}"}
    assert len(instructions("FROM")) == 3


def test_the_base_is_no_moving_name() -> None:
    (default,) = (line for line in instructions("ARG") if line.startswith("BASE_IMAGE="))
    assert re.fullmatch(r"BASE_IMAGE=python:3\.1[1-3]-slim(@sha256:[0-9a-f]{64})?", default)


def test_packages_are_installed_by_hash() -> None:
    (install,) = (line for line in instructions("RUN") if "pip" in line)
    assert "--require-hashes --requirement" in install
    assert "--no-deps" in install


def test_it_ends_as_a_user_who_is_not_root() -> None:
    assert instructions("USER") == ["bench"]


def test_the_history_is_in_the_image_and_the_data_is_not() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert ".git" not in left_out
    assert {".venv", ".data", ".runs"} <= set(left_out)


def test_the_entry_is_a_program() -> None:
    assert os.access(ROOT / "docker-entry.sh", os.X_OK)
    subprocess.run(["sh", "-n", ROOT / "docker-entry.sh"], check=True)


def test_the_cuda_lock_is_the_lock_with_torch_added() -> None:
    cuda, plain = versions("requirements.cuda.lock"), versions("requirements.lock")
    assert {name: plain[name] for name in cuda.keys() & plain.keys()} == {
        name: cuda[name] for name in cuda.keys() & plain.keys()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for pin in (*project["dependencies"], *extras["torch"], *extras["triton"]):
        name, _, version = pin.partition("==")
        assert cuda[name] == version
    assert all(name in plain or name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in cuda)


def test_every_package_of_the_cuda_lock_has_a_hash_and_names_no_host() -> None:
    text = (ROOT / "requirements.cuda.lock").read_text()
    entries = re.split(r"\n(?=[a-z0-9-]+==)", text)[1:]
    assert len(entries) == len(versions("requirements.cuda.lock"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text
