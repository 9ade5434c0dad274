"""Decisions are written once, read back, and add up to a change log and a plateau."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import cli
from bench.errors import VerificationFailed
from bench.experiments.decisions import (
    Decision,
    changelog,
    file_name,
    plateau,
    read_all,
    write_changelog,
    write_once,
)
from tests.experiments.depths import arm, recipe_at, store
from tests.experiments.runs import stored
from tests.records.sample import ROOT


def decision(**changes: Any) -> Decision:
    facts: dict[str, Any] = {
        "schema": 1,
        "date": "2026-03-01T12:00:00Z",
        "track": "cpu-quick",
        "candidate": "new",
        "baseline": "base",
        "change": "warmdown 0.85",
        "cycle": 1,
        "phase": 1,
        "time_gain": 0.04,
        "robust_gain": 0.01,
        "bpb_difference": -0.001,
        "miniseries": "not run",
        "criteria": [],
        "decision": "optional",
        "reasons": ["6.4 miniseries: not run"],
        "records": ["a" * 64],
    }
    return msgspec.convert(facts | changes, Decision)


def cycle(number: int, **changes: Any) -> list[Decision]:
    return [decision(cycle=number, phase=phase, **changes) for phase in (1, 2, 3, 5)]


def test_a_decision_is_written_once(tmp_path: Path) -> None:
    path, is_new = write_once(tmp_path, decision())
    assert is_new
    assert write_once(tmp_path, decision()) == (path, False)
    assert read_all(tmp_path) == [decision()]
    assert [p.name for p in tmp_path.iterdir()] == [file_name(decision())]
    path.write_text(path.read_text().replace("optional", "promote"))
    with pytest.raises(VerificationFailed, match="edited"):
        read_all(tmp_path)
    path.write_text("{}")
    with pytest.raises(VerificationFailed):
        read_all(tmp_path)


def test_the_change_log_has_date_change_measurement_and_decision(tmp_path: Path) -> None:
    later = decision(date="2026-03-02T12:00:00Z", candidate="worse", change="a|b <i>", decision="reject")
    for each in (later, decision()):
        write_once(tmp_path, each)
    text = write_changelog(tmp_path).read_text()
    assert text == changelog([decision(), later])
    assert text.index("2026-03-01 · new") < text.index("2026-03-02 · worse")
    assert "- measured: time -4.0%, val_bpb -0.0010" in text
    assert "- decision: **reject**" in text
    assert "<i>" not in text.replace("\\<i\\>", "")


def test_two_full_quiet_cycles_are_a_plateau() -> None:
    quiet = [*cycle(1), *cycle(2)]
    assert plateau(quiet).is_declared
    assert plateau(quiet).is_deferred_work_open
    assert plateau(quiet).full_cycles == [1, 2]
    assert "Plateau: declared" in changelog(quiet)
    assert "Plateau: no (1 full cycles" in changelog(cycle(1))


@pytest.mark.parametrize(
    ("decisions", "why"),
    [
        ([], "0 full cycles"),
        (cycle(1), "1 full cycles"),
        ([*cycle(1), *cycle(2)[:-1]], "1 full cycles"),
        ([*cycle(1), *cycle(2, robust_gain=0.03)], "gained 3.0%"),
        ([*cycle(1), *cycle(2, miniseries="pass")], "passed the miniseries"),
        ([*cycle(1), *cycle(2, decision="promote")], "passed the miniseries"),
    ],
)
def test_what_is_no_plateau(decisions: list[Decision], why: str) -> None:
    found = plateau(decisions)
    assert not found.is_declared
    assert not found.is_deferred_work_open
    assert why in found.why


def test_an_old_gain_does_not_stand_in_the_way_of_a_plateau() -> None:
    assert plateau([*cycle(1, robust_gain=0.2, decision="promote"), *cycle(2), *cycle(3)]).is_declared


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "leaderboard" / "tracks", tmp_path / "leaderboard" / "tracks")
    records = tmp_path / "leaderboard" / "records"
    stored(records, "base", [2.5, 2.501, 2.499], recipe=recipe_at(4, 0.0))
    stored(records, "new", [2.4, 2.401, 2.399], 13.0, recipe=recipe_at(4, 0.01))
    stored(records, "third", [2.6, 2.601, 2.599])
    store(records, [*arm((0.0,) * 3, 0.0), *arm((0.01,) * 3, 0.01)])
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    words = ["gate", "new", "--baseline", "base", "--target", "2.55", "--miniseries"]
    words += ["--plot", str(tmp_path / "profile.svg")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "promote: every criterion that applies is passed" in out
    assert "miniseries: pass" in out
    assert "at d8: -0.00997 by trend" in out
    assert "new, mean to factor 4: 1.00" in (tmp_path / "profile.svg").read_text()
    assert "wrote leaderboard/decisions/2026-03-01-new-" in out
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["decision"], told["miniseries"], len(told["records"])) == ("promote", "pass", 24)
    assert cli.main([*words, "--miniseries", "d12-local"]) == 2
    assert "no miniseries of new and base on d12-local" in capsys.readouterr().err
    assert len(list((tmp_path / "leaderboard" / "decisions").glob("*.json"))) == 1
    assert cli.main(["gate", "new", "--baseline", "base", "--concern", "hard to follow"]) == 0
    assert "reject" in (tmp_path / "leaderboard" / "decisions" / "CHANGELOG.md").read_text()
    assert cli.main(["gate", "new", "--baseline", "nope"]) == 2
    assert "no records of nope" in capsys.readouterr().err
