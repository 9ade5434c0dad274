"""A run goes on only on the machine and with the code that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.errors import DataError
from bench.host.circumstances import Circumstances, circumstances, deciding, require_unchanged
from tests.host.conftest import commit
from tests.tiny import facts


def test_the_same_machine_and_code_go_on(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    kept = msgspec.json.decode(msgspec.json.encode(begun), type=Circumstances)
    assert kept == begun
    elsewhere = msgspec.structs.replace(facts(), hostname_sha256="0" * 64, load_average=9.0)
    assert require_unchanged(kept, circumstances(elsewhere, checkout), "it") == begun


def test_what_does_not_run_may_change(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    (checkout / "README.md").write_text("other words\n")
    (checkout / "bench" / ".run.py.swp").write_text("an editor's\n")
    (checkout / "leaderboard" / "tracks").mkdir(parents=True)
    (checkout / "leaderboard" / "tracks" / "mine.toml").write_text("title = 'mine'\n")
    now = circumstances(facts(), checkout)
    assert now.code.dirty_sha256
    require_unchanged(begun, now, "it")


def test_changes_may_be_committed_while_a_run_waits(checkout: Path) -> None:
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    begun = circumstances(facts(), checkout)
    assert begun.code.dirty_sha256
    commit(checkout, "two")
    now = circumstances(facts(), checkout)
    assert now.code.commit != begun.code.commit
    require_unchanged(begun, now, "it")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cpu_model": "Other CPU"}, "processor Other CPU, not"),
        ({"device_name": "NVIDIA H100"}, "device NVIDIA H100, not"),
        ({"features": ("i8mm", "sme")}, "instructions i8mm sme, not"),
        ({"cpu_cores": 96}, "cores 96, not 1"),
        ({"versions": {"torch": "2.11.0"}}, "torch 2.11.0, not"),
        ({"versions": {**facts().versions, "triton": "9.9"}}, "triton 9.9, not"),
        ({"python_version": "3.99.1"}, "python 3.99.1, not"),
        ({"driver_version": "999.1"}, "driver 999.1, not None"),
    ],
)
def test_another_machine_is_named(checkout: Path, changed: dict[str, Any], told: str) -> None:
    begun = circumstances(facts(), checkout)
    now = circumstances(msgspec.structs.replace(facts(), **changed), checkout)
    with pytest.raises(DataError, match="step 4 was begun under other circumstances") as caught:
        require_unchanged(begun, now, "step 4")
    assert told in caught.value.message
    assert "other code" not in caught.value.message


def test_other_code_is_named_by_the_commit_it_was(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    dirty = circumstances(facts(), checkout)
    with pytest.raises(DataError, match=f"other code, not commit {begun.code.commit[:8]}$"):
        require_unchanged(begun, dirty, "it")
    with pytest.raises(DataError, match=f"not commit {begun.code.commit[:8]} with uncommitted changes"):
        require_unchanged(dirty, begun, "it")


def test_who_says_nothing_does_not_go_on(checkout: Path) -> None:
    with pytest.raises(DataError, match="it does not say where and with what code it was made"):
        require_unchanged(None, circumstances(facts(), checkout), "it")


def test_facts_that_say_nothing_differ_from_those_that_do() -> None:
    assert deciding({})["torch"] == "None"
    assert deciding({"versions": 3, "features": ["a", "b"]})["instructions"] == "a b"
