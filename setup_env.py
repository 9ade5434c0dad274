"""Build the project's private environment in .venv: the locked packages by hash, then torch by version.

Called by the Makefile with any Python >= 3.11; needs the standard library and either ensurepip, pip or uv.
Everything is installed by the environment's own pip, so a machine's pip configuration (index, mirror,
find-links, certificates) holds throughout. `.venv/.stamp` is written last and says what was installed:
a set-up that was cut short has no stamp and is finished by the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
LOCK = ROOT / "requirements.lock"
PYTHON = VENV / "bin" / "python"
PIP = (PYTHON, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input")
TRITON_EXISTS = sys.platform == "linux"  # there are wheels for no other system
# pip compiles what it installs file by file: a third of the set-up (62 s against 43 s, two cores), most of it
# for parts of torch that nothing here imports. So it compiles nothing, and what the proofs and torch.compile
# load is compiled on all cores: 11 s, where a first run took 15 s longer to import it.
INSTALL = (*PIP, "install", "--no-compile")
LOADED_BY_RUNS = ("hypothesis", "mpmath", "networkx", "sympy", "torch/_*", "torch/fx", "torch/utils")


class SetupError(Exception):
    """One line of what is wrong, one line of what mends it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def pinned(name: str) -> str:
    """The requirement, `name==version`, of one of pyproject.toml's single-package extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = project["optional-dependencies"][name]
    return str(requirement)


def installed() -> dict[str, str]:
    """What the stamp says the environment holds; empty before the first whole set-up."""
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp


def wanted(torch_index: str, triton: bool) -> dict[str, str]:
    """What the environment should hold. An option that is not given keeps what an earlier call chose."""
    before = installed()
    return {
        "python": "{}.{}".format(*sys.version_info),
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "torch": pinned("torch"),
        "torch_index": torch_index or before.get("torch_index", ""),
        "triton": pinned("triton") if TRITON_EXISTS and (triton or before.get("triton")) else "",
    }


def has_nvidia_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU: its device file or, where there is none (WSL), nvidia-smi."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def run(*command: str | Path) -> None:
    """Run a command to its end; its failure ends the set-up."""
    if subprocess.run(command, check=False, cwd=ROOT).returncode != 0:
        line = " ".join(map(str, command))
        raise SetupError(f"this failed: {line}", "see the lines above; the next `make` tries again")


def environment_works(version: str) -> bool:
    """Whether .venv holds a Python of this version that runs, and pip."""
    probe = "import sys, pip; print('{}.{}'.format(*sys.version_info))"
    try:
        answer = subprocess.run([PYTHON, "-I", "-c", probe], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return answer.stdout.strip() == version


def create_environment() -> None:
    """Make .venv anew with pip in it, from whichever of ensurepip, pip and uv this machine has."""
    print(f"setup: Python {sys.version.split()[0]} -> .venv", flush=True)
    if find_spec("ensurepip"):
        run(sys.executable, "-m", "venv", "--clear", VENV)
    elif find_spec("pip"):
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
        run(sys.executable, "-m", "pip", "--quiet", "--python", PYTHON, "install", "pip")
    elif uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, VENV)
    else:
        raise SetupError(
            f"{sys.executable} has neither ensurepip nor pip, and there is no uv",
            "on Debian and Ubuntu: apt install python3-venv; or install uv",
        )


def install_cpu_torch(requirement: str) -> bool:
    """Install the build that its local version marks as CPU-only; False where no index of pip's has it."""
    command = (*INSTALL, f"{requirement}+cpu")
    attempt = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if attempt.returncode == 0:
        return True
    if "No matching distribution found" in attempt.stderr:
        return False
    raise SetupError(f"pip could not install {requirement}+cpu: {attempt.stderr.strip()}", "see pip's lines")


def install_torch(requirement: str, index: str) -> None:
    """Install torch in this machine's build: CUDA without a GPU only where no CPU build is to be had."""
    print(f"setup: {requirement}" + (f" from {index}" if index else ""), flush=True)
    if index:
        run(*INSTALL, "--index-url", index, requirement)
    elif sys.platform != "linux" or has_nvidia_gpu():
        run(*INSTALL, requirement)
    elif not install_cpu_torch(requirement):
        # The index's Linux build does not import without its CUDA packages, so they cannot be left out.
        print(
            f"setup: no NVIDIA GPU here, and pip finds no {requirement}+cpu: installing the index's own "
            "build, which may bring several GB of CUDA packages\n"
            "setup: for a CPU build instead: make setup TORCH_INDEX=<URL of an index of CPU builds>",
            flush=True,
        )
        run(*INSTALL, requirement)


def compile_modules() -> None:
    """Write the bytecode of what a run loads, where the environment's own Python looks for it."""
    (packages,) = (VENV / "lib").glob("python*/site-packages")
    loaded = sorted(path for pattern in LOADED_BY_RUNS for path in packages.glob(pattern))
    run(PYTHON, "-m", "compileall", "-q", "-j", "0", *loaded)


def build(want: dict[str, str]) -> None:
    """Bring .venv to what is wanted and stamp it."""
    start_s = time.monotonic()
    have = installed()
    STAMP.unlink(missing_ok=True)
    if not environment_works(want["python"]):
        create_environment()
        have = {}
    print("setup: packages of requirements.lock", flush=True)
    run(*INSTALL, "--require-hashes", "--no-deps", "--requirement", LOCK)
    if have.get("torch_index", want["torch_index"]) != want["torch_index"]:
        run(*PIP, "uninstall", "--yes", "torch")  # the same version from another index is another build
    install_torch(want["torch"], want["torch_index"])
    if want["triton"]:
        run(*INSTALL, want["triton"])
    compile_modules()
    run(PYTHON, "-c", "import torch; print('setup: imports torch', torch.__version__)")
    scratch = STAMP.with_suffix(".new")
    scratch.write_text(json.dumps(want, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, STAMP)
    print(f"setup: ready in {time.monotonic() - start_s:.0f} s", flush=True)


def main() -> int:
    """Bring .venv up to date; does nothing but touch the stamp when it is."""
    parser = argparse.ArgumentParser(description="Build .venv; `make setup` calls this.")
    parser.add_argument("--torch-index", default="", help="URL of the package index to take torch from")
    parser.add_argument("--triton", action="store_true", help="install triton without an NVIDIA GPU too")
    options = parser.parse_args()
    want = wanted(options.torch_index, options.triton)
    try:
        if installed() == want and environment_works(want["python"]):
            STAMP.touch()
        else:
            build(want)
    except SetupError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
