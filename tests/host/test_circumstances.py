"""A run goes on only on the machine and with the code that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.errors import DataError
from bench.host.circumstances import Circumstances, circumstances, deciding, require_unchanged
from tests.tiny import facts


def test_the_same_machine_and_code_go_on(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    again = msgspec.json.decode(msgspec.json.encode(begun), type=Circumstances)
    assert again == begun
    elsewhere = msgspec.structs.replace(facts(), hostname_sha256="0" * 64, load_average=9.0)
    require_unchanged(again, elsewhere, checkout, "it")
    (checkout / "README.md").write_text("other words\n")
    require_unchanged(again, facts(), checkout, "it")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cpu_model": "Other CPU"}, "processor Other CPU, not"),
        ({"device_name": "NVIDIA H100"}, "device NVIDIA H100, not"),
        ({"features": ("i8mm", "sme")}, "instructions i8mm sme, not"),
        ({"cpu_cores": 96}, "cores 96, not 1"),
        ({"versions": {"torch": "2.11.0"}}, "torch 2.11.0, not"),
    ],
)
def test_another_machine_is_named(checkout: Path, changed: dict[str, Any], told: str) -> None:
    begun = circumstances(facts(), checkout)
    with pytest.raises(DataError, match="step 4 was begun under other circumstances") as caught:
        require_unchanged(begun, msgspec.structs.replace(facts(), **changed), checkout, "step 4")
    assert told in caught.value.message
    assert "other code" not in caught.value.message


def test_other_code_is_named_by_the_commit_it_was(checkout: Path) -> None:
    begun = circumstances(facts(), checkout)
    (checkout / "bench" / "run.py").write_text("x = 2\n")
    with pytest.raises(DataError, match=f"other code, not commit {begun.code.commit[:8]}$"):
        require_unchanged(begun, facts(), checkout, "it")
    dirty = circumstances(facts(), checkout)
    (checkout / "bench" / "run.py").write_text("x = 1\n")
    with pytest.raises(DataError, match=f"not commit {begun.code.commit[:8]} with uncommitted changes"):
        require_unchanged(dirty, facts(), checkout, "it")


def test_facts_that_say_nothing_differ_from_those_that_do() -> None:
    assert deciding({})["torch"] == "None"
    assert deciding({"versions": 3, "features": ["a", "b"]})["instructions"] == "a b"
