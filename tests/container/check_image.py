"""The container, built and run by a real engine by `make test-container`; `make test` does not collect it.

The base is BASE_IMAGE where the engine has it or can pull it, else a Debian made here by debootstrap. The
packages come from a folder of wheels made first, so that the build itself needs an index for nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE, AGAIN, OWN_BASE = "speedrun-bench:test", "speedrun-bench:again", "speedrun-base:test"
CLOSED = ("--rm", "--read-only", "--network", "none")
TRACK = """title = "Tiny"
says = "It runs."
says_not = "More."
size = 1
[score]
metric = "val_bpb"
[hardware]
machine_class = "cpu"
device_kind = "cpu"
[seeds]
count = 2
nonce = "tiny"
"""
RECIPE = """title = "Tiny"
base = "quick"
track = "tiny"
[model]
depth = 2
aspect_ratio = 32
head_dim = 32
sequence_length = 32
vocab_size = 384
[horizon]
iterations = 8
[batch]
tokens = 512
[compile]
enabled = false
[data]
tokenizer_chars = 1_000_000
[eval]
validation_bytes = 4000
"""
# Every file below a folder by its hash, links by their target.
LISTING = """
import hashlib, os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            print(path, os.readlink(path))
        else:
            print(path, hashlib.sha256(open(path, "rb").read()).hexdigest())
"""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, its time and its failure shown."""
    begun_s = time.monotonic()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    answer = subprocess.run(command, cwd=cwd, env=env | environment, capture_output=True, text=True)
    shown = " ".join(str(word) for word in command)[:110]
    print(f"\n[{time.monotonic() - begun_s:6.1f} s, exit code {answer.returncode}] {shown}", flush=True)
    return answer


def done(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a command that has to succeed."""
    answer = run(*command, cwd=cwd, **environment)
    assert answer.returncode == 0, f"{answer.stdout[-4000:]}\n{answer.stderr[-4000:]}"
    return answer.stdout


@pytest.fixture(scope="module")
def engine() -> None:
    if shutil.which(DOCKER) is None:
        pytest.skip(f"no {DOCKER} here")
    if run(DOCKER, "info").returncode != 0:
        pytest.skip(f"no engine answers {DOCKER}")


@pytest.fixture(scope="module")
def base(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A base image with Python: the one asked for, or a Debian made here."""
    asked = os.environ.get("BASE_IMAGE", "")
    if asked and (
        run(DOCKER, "image", "inspect", asked).returncode == 0 or run(DOCKER, "pull", asked).returncode == 0
    ):
        yield asked
        return
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip(f"{asked or 'BASE_IMAGE'} cannot be pulled, and debootstrap (as root) cannot make a base")
    folder = tmp_path_factory.mktemp("base") / "rootfs"
    python = "--include=python3,python3-venv,python3-dev"
    done("debootstrap", "--variant=minbase", python, "bookworm", folder)
    archive = folder.with_suffix(".tar")
    done("tar", "-C", folder, "-cf", archive, ".")
    done(DOCKER, "import", archive, OWN_BASE)
    shutil.rmtree(folder)
    archive.unlink()
    yield OWN_BASE
    done(DOCKER, "rmi", "--force", OWN_BASE)


@pytest.fixture(scope="module")
def checkout(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with this checkout's changes, and the wheels for the base's Python."""
    clone = tmp_path_factory.mktemp("context") / "speedrun-bench"
    done("git", "clone", "--quiet", ROOT, clone)
    listing = done("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    if given := os.environ.get("WHEELS"):
        shutil.copytree(given, clone / "wheels")
    else:
        download_wheels(base, clone / "wheels")
    return clone


def download_wheels(base: str, folder: Path) -> None:
    """What the lock lists, and torch's CPU build, for the base's Python."""
    asked = "import sys; print('{}.{}'.format(*sys.version_info))"
    version = done(DOCKER, "run", "--rm", "--network", "none", base, "python3", "-c", asked).strip()
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder)
    wheels = ("--only-binary=:all:", "--python-version", version)
    done(*pip, *wheels, "--require-hashes", "--requirement", "requirements.lock")
    index = os.environ.get("TORCH_INDEX")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    done(*pip, *wheels, *(["--index-url", index] if index else []), f"{extras['torch'][0]}+cpu")


@pytest.fixture(scope="module")
def image(base: str, checkout: Path) -> Iterator[str]:
    """The image, by `make image`."""
    build(base, checkout, IMAGE)
    yield IMAGE
    done(DOCKER, "rmi", "--force", IMAGE)


def build(base: str, checkout: Path, name: str, *options: str) -> None:
    words = " ".join(("--network host --no-cache --force-rm", *options))
    make = ("make", "image", f"BASE_IMAGE={base}", "DEVICE=cpu", "WHEELS=wheels", f"IMAGE={name}")
    done(*make, f"DOCKER_BUILD_OPTIONS={words}", cwd=checkout, DOCKER_BUILDKIT="0")


def files(name: str, folder: str) -> list[str]:
    listing = ("--entrypoint", "/opt/venv/bin/python", name, "-c", LISTING, folder)
    return sorted(done(DOCKER, "run", *CLOSED, *listing).splitlines())


def test_it_runs_as_nobody_special_and_cannot_change_the_code(image: str) -> None:
    script = "id -u; touch bench/changed 2>/dev/null || echo refused; test -e wheels || echo clean"
    answer = run(DOCKER, "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", script)
    assert answer.stdout.split() == ["1000", "refused", "clean"]


def test_doctor_finds_a_machine_that_can_run(image: str) -> None:
    diagnosis = json.loads(done(DOCKER, "run", *CLOSED, image, "doctor", "--json"))
    found = {finding["name"]: finding for finding in diagnosis["findings"]}
    assert {"packages", "float32", "compile", "commit", "disk"} <= set(found)
    assert [name for name, finding in found.items() if finding["state"] == "fault"] == []
    assert found["commit"]["state"] == "ok"  # the image holds the checkout's history


def test_a_command_keeps_its_exit_code(image: str) -> None:
    answer = run(DOCKER, "run", *CLOSED, image, "run", "submissions/no-such.toml")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")


def test_without_a_command_it_looks_around_runs_and_shows_the_board(image: str) -> None:
    told = done(DOCKER, "run", *CLOSED, image)
    assert "a run can start" in told
    assert told.index("a run can start") < told.index("val_bpb") < told.index("# Leaderboard")
    assert re.search(r"quick on cpu-quick, seed \d+: val_bpb", told)  # the next without a record in the image


def test_docker_bench_leaves_a_record_that_names_image_and_base(image: str, checkout: Path) -> None:
    (checkout / "submissions" / "tiny.toml").write_text(RECIPE)
    (checkout / "leaderboard" / "tracks" / "tiny.toml").write_text(TRACK)
    make = ("make", "docker-bench", "SUB=submissions/tiny.toml", "TRACK=tiny", f"IMAGE={image}")
    done(*make, "DOCKER_RUN_OPTIONS=--network none", cwd=checkout)
    (path,) = checkout.glob("leaderboard/records/tiny/tiny/*.json")
    identity = json.loads(path.read_text())["identity"]
    built = done(DOCKER, "image", "inspect", "--format", "{{.Id}}", image).strip()
    digest, _, from_base = identity["image_digest"].partition(" on ")
    assert digest == built
    assert "sha256:" in from_base
    assert identity["git_commit"] == done("git", "rev-parse", "HEAD", cwd=checkout).strip()


def test_two_builds_install_the_same_files(image: str, base: str, checkout: Path) -> None:
    build(base, checkout, AGAIN, "--target", "packages")
    try:
        first, second = files(image, "/opt/venv"), files(AGAIN, "/opt/venv")
    finally:
        done(DOCKER, "rmi", "--force", AGAIN)
    assert len(first) > 10_000
    assert sorted(set(first) ^ set(second)) == []
