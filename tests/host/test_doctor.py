"""What `bench doctor` finds out without torch: clashes, packages, disk, commit; and its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError
from bench.host import doctor
from bench.host.doctor import OURS, Diagnosis, Finding, clashes, commit, disk, packages, table
from bench.host.machine import detect, hardware_class

ROOT = Path(__file__).resolve().parents[2]


def diagnosis(*findings: Finding) -> Diagnosis:
    facts = detect("cpu", environment={})
    return Diagnosis(machine_class=hardware_class(facts), facts=facts, findings=list(findings))


def package(folder: Path, name: str, with_code: bool = True) -> Path:
    (folder / name).mkdir(parents=True)
    if with_code:
        (folder / name / "__init__.py").touch()
    return folder


@given(st.lists(st.tuples(st.sampled_from(["ok", "note", "fault"]), st.integers(2, 9))))
def test_the_first_fault_decides_the_exit_code_and_only_faults_do(states: list[tuple[str, int]]) -> None:
    findings = [
        msgspec.convert({"name": "x", "says": "y", "state": state, "exit_code": code}, Finding)
        for state, code in states
    ]
    faults = [code for state, code in states if state == "fault"]
    found = diagnosis(*findings)
    assert found.exit_code == (faults[0] if faults else 0)
    assert table(found).endswith("a run can start") == (not faults)


def test_the_table_shows_what_mends_a_finding() -> None:
    shown = table(diagnosis(Finding(name="disk", state="fault", says="full", mend="empty it", exit_code=5)))
    assert shown.splitlines()[0].split() == ["FAULT", "disk", "full"]
    assert shown.splitlines()[1].split() == ["->", "empty", "it"]


def test_this_checkout_has_no_clash() -> None:
    assert list(clashes(ROOT, [str(ROOT), *sys.path])) == []


@pytest.mark.parametrize("name", OURS)
def test_another_package_of_our_name_is_a_fault_where_it_comes_first(name: str, tmp_path: Path) -> None:
    site = str(package(tmp_path, name))
    (first,) = clashes(ROOT, [site, str(ROOT)])
    assert (first.state, first.exit_code) == ("fault", 3)
    assert str(tmp_path / name) in first.says
    (second,) = clashes(ROOT, [str(ROOT), site])
    assert second.state == "note"


def test_a_single_file_of_our_name_clashes_too(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    (found,) = clashes(ROOT, [str(tmp_path), str(ROOT)])
    assert found.state == "fault"


def test_a_folder_without_code_is_no_package(tmp_path: Path) -> None:
    site = str(package(tmp_path, "kernels", with_code=False))
    assert list(clashes(ROOT, [site, str(ROOT)])) == []


def test_the_environment_of_the_tests_is_whole() -> None:
    assert packages(ROOT).state == "ok"


def test_a_missing_package_is_a_fault_and_another_version_a_note(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["no-such-package==1.0", "msgspec==0.0.1"]\n')
    missing = packages(tmp_path)
    assert (missing.state, missing.exit_code, missing.mend) == ("fault", 3, "make setup")
    assert "no-such-package" in missing.says
    project.write_text('[project]\ndependencies = ["msgspec==0.0.1"]\n')
    other = packages(tmp_path)
    assert other.state == "note"
    assert "0.0.1" in other.says


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    assert disk(tmp_path / "a" / "b").state == "ok"
    assert not (tmp_path / "a").exists()


@pytest.fixture
def read_only() -> Path:
    place = Path("/proc")  # nobody, root included, makes a file there
    if not place.is_dir() or sys.platform != "linux":
        pytest.skip("needs Linux's /proc")
    return place


def test_a_folder_nobody_can_write_is_a_fault(read_only: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        disk(read_only)


def test_a_full_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 2**62)
    with pytest.raises(DataError, match="free, a run needs"):
        disk(tmp_path)


def test_outside_a_checkout_no_commit_is_known(tmp_path: Path) -> None:
    assert commit(tmp_path).state == ("note" if not os.environ.get("GIT_DIR") else "ok")
