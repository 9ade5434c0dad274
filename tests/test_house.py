"""The front door: the Makefile, the lock, pyproject.toml, CI and the documents agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from setup_env import LOADED_BY_RUNS
from tests.conftest import NetworkUsed, is_local
from tests.readme_tree import FOLDERS, recipes, with_tree

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Not in the lock, for their builds differ by machine; setup_env.py installs them by version.
OUTSIDE_THE_LOCK = ("torch", "triton", "nvidia", "cuda")


def outside_make(**environment: str) -> dict[str, str]:
    """The environment without what a `make test` around this test hands down, such as its own ARGS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return {**kept, **environment}


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make, but not the set-up: the environment of these tests stands already."""
    command = ["make", "--assume-old=.venv/.stamp", "TORCH_INDEX=", "TRITON=", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=outside_make(**environment), capture_output=True, text=True, check=False
    )


def targets() -> list[str]:
    line = re.search(r"^\.PHONY: (help .*)$", MAKEFILE, re.MULTILINE)
    assert line is not None
    return line[1].split()


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """The lock's entries: name -> (requirement, hashes)."""
    entries: dict[str, tuple[Requirement, list[str]]] = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n?", "", LOCK, flags=re.MULTILINE).strip()):
        first, *rest = entry.replace("\\\n", "\n").splitlines()
        requirement = Requirement(first)
        entries[canonicalize_name(requirement.name)] = (requirement, [line.strip() for line in rest])
    return entries


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("submissions/*.md"), *ROOT.glob(".github/*.md")])


def test_make_alone_lists_every_target() -> None:
    listing = make()
    assert listing.returncode == 0
    assert re.findall(r"^  make ([a-z-]+) +\S", listing.stdout, re.MULTILINE) == targets()


@pytest.mark.parametrize("target", ["bench", "plan", "show", "diff"])
def test_a_missing_recipe_is_named_not_guessed(target: str) -> None:
    answer = make(target, "PY=false", SUB="from-the-environment", A="from-the-environment")
    assert answer.returncode == 2
    assert "SUB=" in answer.stderr or "A=" in answer.stderr


def test_options_reach_the_command_as_single_words(tmp_path: Path) -> None:
    echo = tmp_path / "echo"
    echo.write_text('#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\n')
    echo.chmod(0o755)
    options = ["SUB=a b;$$(touch x).toml", "TRACK=it's", "SEED=7", "ARGS=--json --debug"]
    answer = make("bench", f"PY={echo}", *options)
    expected = [
        ["-m", "bench", "launch"],
        ["a b;$(touch x).toml", "--track", "it's"],
        ["--seed", "7", "--json", "--debug"],
    ]
    assert answer.stdout.splitlines() == [f"[{word}]" for words in expected for word in words]


def test_every_locked_package_has_a_hash() -> None:
    for requirement, hashes in locked().values():
        assert re.fullmatch(r"==[^=*]+", str(requirement.specifier)), requirement
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), requirement


def test_the_lock_names_no_host() -> None:
    assert "://" not in LOCK
    assert not re.search(r"--(index|extra-index|find-links|trusted-host)", LOCK)


def test_the_lock_leaves_out_what_differs_by_machine() -> None:
    assert not [name for name in locked() if name.startswith(OUTSIDE_THE_LOCK) and name != "nvidia-ml-py"]


def test_the_lock_holds_what_pyproject_pins() -> None:
    declared = map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    pins = {canonicalize_name(requirement.name): requirement.specifier for requirement in declared}
    assert {name: locked()[name][0].specifier for name in pins} == pins


def test_the_lock_holds_what_torch_needs() -> None:
    versions = {name: next(iter(entry[0].specifier)).version for name, entry in locked().items()}
    for requirement in map(Requirement, metadata.requires("torch") or []):
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not name.startswith(OUTSIDE_THE_LOCK):
            assert requirement.specifier.contains(versions[name]), requirement


def test_the_environment_is_the_locks() -> None:
    for requirement, _ in locked().values():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(metadata.version(requirement.name)), requirement


def test_the_torch_here_is_supported() -> None:
    (pin,) = PROJECT["optional-dependencies"]["torch"]
    newest = Version(next(iter(Requirement(pin).specifier)).version)
    assert Version("2.11") <= Version(Version(metadata.version("torch")).public) <= newest


def test_ci_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    stages = re.findall(r"^stage make (\S+)", script, re.MULTILINE)
    assert stages == ["lint", "test", "test-slow", "leaderboard"]
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_workflows_give_a_stranger_nothing() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        assert "pull_request_target" not in text
        assert "permissions:\n  contents: read\n" in text
        assert "write" not in text
        for action in re.findall(r"uses: *(\S+)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_documents_name_commands_that_exist(path: Path) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+`", path.read_text(encoding="utf-8"), re.DOTALL)
    named = {target for text in code for target in re.findall(r"\bmake ([a-z][a-z-]*)\b(?!=)", text)}
    assert named <= set(targets())
    spoken = {word for text in code for word in re.findall(r"(?:-m bench|`bench) ([a-z]+)\b", text)}
    if spoken:
        command = [sys.executable, "-m", "bench", "--help"]
        usage = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert not {word for word in spoken if not re.search(rf"\b{word}\b", usage)}


def test_the_set_up_compiles_packages_that_are_there() -> None:
    """A pattern that matches nothing would leave its modules to a first run."""
    packages = Path(sysconfig.get_path("purelib"))
    assert [each for each in LOADED_BY_RUNS if not any(packages.glob(f"{each}/*.py"))] == []


@pytest.mark.slow
def test_the_set_up_mends_a_broken_environment(tmp_path: Path) -> None:
    """A set-up cut short leaves no stamp; one without a working pip is made anew, and failure is one line."""
    for name in ("Makefile", "setup_env.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.lock").write_text("no-such-package==0 --hash=sha256:" + "0" * 64 + "\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/nonexistent")
    env = outside_make(PIP_NO_INDEX="1")
    for _ in range(2):
        answer = subprocess.run(["make", "setup"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert answer.returncode == 2
        assert "Traceback" not in answer.stderr
        assert re.search(r"^error: .*\nhint: ", answer.stderr, re.MULTILINE)
        assert not (tmp_path / ".venv" / ".stamp").exists()
        assert (tmp_path / ".venv" / "bin" / "python").exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org"])  # RFC 5737, RFC 2606: nobody's
def test_no_test_reaches_the_network(host: str) -> None:
    with pytest.raises(NetworkUsed):
        socket.create_connection((host, 9), timeout=0.01)


@pytest.mark.parametrize(
    "address", ["localhost", "127.0.0.1", ("127.9.9.9", 80), ("::1", 80, 0, 0), "/x", None]
)
def test_local_addresses_pass(address: object) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", ["example.org", ("192.0.2.1", 1), ("2001:db8::1", 1, 0, 0), "10.0.0.1"])
def test_other_addresses_do_not(address: object) -> None:
    assert not is_local(address)


def test_the_readme_lists_every_module_as_it_describes_itself() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_tree(readme), "`python -m tests.readme_tree` writes the list anew"
    shipped = {path.parent for name in ("bench", "kernels", "model") for path in (ROOT / name).rglob("*.py")}
    assert {ROOT / folder for folder, _ in FOLDERS} == shipped


def test_what_the_list_of_recipes_says_is_so() -> None:
    """A new recipe need not be listed at once: who adds one changes that file and its records alone."""

    def rows(text: str) -> set[tuple[str, ...]]:
        cells = (line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ["))
        return {tuple(cell.strip() for cell in row) for row in cells}

    listed = rows((ROOT / "submissions" / "README.md").read_text(encoding="utf-8"))
    assert len(listed) > 70
    assert listed <= rows(recipes())
