"""A run goes on only on the machine and with the code that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.host.circumstances import Circumstances, changes_since, circumstances, deciding, refusal
from tests.host.conftest import commit
from tests.tiny import facts


def test_the_same_machine_and_code_go_on(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    kept = msgspec.json.decode(msgspec.json.encode(begun), type=Circumstances)
    assert kept == begun
    elsewhere = msgspec.structs.replace(facts(), hostname_sha256="0" * 64, load_average=9.0)
    assert refusal(kept, circumstances(elsewhere, checkout)) == ""


def test_what_does_not_run_may_change(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    (checkout / "README.md").write_text("other words\n")
    (checkout / "bench" / ".run.py.swp").write_text("an editor's\n")
    (checkout / "leaderboard" / "tracks").mkdir(parents=True)
    (checkout / "leaderboard" / "tracks" / "mine.toml").write_text("title = 'mine'\n")
    (checkout / "bench" / ".#run.py").symlink_to("nobody@nowhere.1")  # Emacs': it leads nowhere
    now = circumstances(facts(), checkout)
    assert refusal(begun, now) == ""
    assert changes_since(begun, checkout) == []


def test_changes_may_be_committed_while_a_run_waits(checkout: Path) -> None:
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    begun = circumstances(facts(), checkout)
    assert begun.code.dirty_sha256
    commit(checkout, "two")
    now = circumstances(facts(), checkout)
    assert now.code.commit != begun.code.commit
    assert refusal(begun, now) == ""


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
        ({"versions": {}}, "torch None, not"),
        ({"versions": {k: v for k, v in facts().versions.items() if k != "numpy"}}, "numpy none, not"),
    ],
)
def test_another_machine_is_named(checkout: Path, changed: dict[str, Any], told: str) -> None:
    begun = circumstances(facts(), checkout)
    now = circumstances(msgspec.structs.replace(facts(), **changed), checkout)
    said = refusal(begun, now)
    assert said.startswith("was begun under other circumstances: ")
    assert told in said
    assert "other code" not in said


def test_other_code_is_named_by_the_commit_it_was(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    dirty = circumstances(facts(), checkout)
    assert refusal(begun, dirty).endswith(f"other code, not commit {begun.code.commit[:8]}")
    assert refusal(dirty, begun).endswith(f"not commit {begun.code.commit[:8]} with uncommitted changes")
    assert changes_since(begun, checkout) == ["the code was changed while it ran"]


def test_who_says_nothing_does_not_go_on(checkout: Path) -> None:
    now = circumstances(facts(), checkout)
    assert refusal(None, now) == "does not say where and with what code it was made"
    older = msgspec.json.encode({"machine": now.machine, "code": now.code})
    assert "other code" in refusal(msgspec.json.decode(older, type=Circumstances), now)


def test_facts_that_say_nothing_differ_from_those_that_do() -> None:
    assert deciding({})["torch"] == "None"
    assert deciding({"versions": 3, "features": ["a", "b"]})["instructions"] == "a b"
