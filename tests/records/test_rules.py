"""The table of rules: each listed once, here and in RULES.md, none that stops at a stranger's figures."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import msgspec
import pytest

from bench.errors import VerificationFailed
from bench.evaluation import probes
from bench.records import assemble, rules_scores
from bench.records.rules import MAX_REASON, RULES, Rule, findings
from bench.records.rules_context import contexts
from bench.records.rules_scores import same_tokenizer
from bench.records.rules_shape import mfu, roofline
from bench.records.schema import Record
from bench.records.verify import require_all_valid
from bench.spec.track import NamedTrack, load_tracks
from tests.records.sample import ROOT, changed, quick_track, sample, stored

IDS = [rule.id for rule in RULES]


def listed(heading: str) -> list[str]:
    """The ids in the first column of a table of RULES.md."""
    _, _, after = (ROOT / "RULES.md").read_text(encoding="utf-8").partition(f"| {heading} |")
    table, _, _ = after.partition("\n\n")
    return re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)


def test_rules_md_lists_every_rule_once_in_order() -> None:
    assert listed("rule | asks") == [rule.id for rule in RULES if rule.refuses]
    assert listed("remark | says") == [rule.id for rule in RULES if not rule.refuses]
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_every_rule_says_what_it_asks(rule: Rule) -> None:
    assert rule.check.__doc__
    assert rule.check.__doc__.strip().endswith(".")


def test_the_second_statement_of_a_constant_is_the_first(tmp_path: Path) -> None:
    """The rules are not computed by the code that they judge, but agree with it."""
    assert rules_scores.PROBE_TOLERANCES["causality_max_change"] == probes.CAUSALITY_TOLERANCE
    assert rules_scores.PROBE_TOLERANCES["normalisation_max_error"] == probes.NORMALISATION_TOLERANCE
    assert rules_scores.SMOOTHING == assemble.SMOOTHING


def test_a_figure_that_arithmetic_cannot_hold_is_a_finding(tmp_path: Path) -> None:
    record, events = sample()
    ledger = dict.fromkeys(record.timing.ledger, 1.7e308)
    one = stored(tmp_path, changed(record, "timing.ledger", ledger), events)
    [found] = findings([one], {"cpu-quick": quick_track()})
    assert "beyond all bounds" in " ".join(finding.reason for finding in found if finding.rule == "ledger")


def test_reasons_are_short_and_printable(tmp_path: Path) -> None:
    record, events = sample()
    loud = changed(record, "machine.machine_class", "\x1b[2J" * 200)
    [found] = findings([stored(tmp_path, loud, events)], {"cpu-quick": quick_track()})
    assert found
    assert all(finding.reason.isprintable() and len(finding.reason) <= MAX_REASON for finding in found)


def test_records_of_a_checkout_are_judged_together(tmp_path: Path) -> None:
    records = [stored(tmp_path, *sample(seed_index=index)) for index in range(3)]
    assert require_all_valid(records, {"cpu-quick": quick_track()}) == [[], [], []]
    record, events = sample(seed_index=3)
    copied = changed(record, "scores.weights_sha256", records[0].record.scores.weights_sha256)
    later = changed(copied, "created", "2026-04-01T12:00:00Z")
    with pytest.raises(VerificationFailed, match="bit for bit"):
        require_all_valid([*records, stored(tmp_path, later, events)], {"cpu-quick": quick_track()})


def test_committed_records_break_no_rule() -> None:
    from bench.records.store import read_all

    tracks = {named.name: named for named in load_tracks(ROOT / "leaderboard" / "tracks")}
    for remarks in require_all_valid(read_all(ROOT / "leaderboard" / "records"), tracks):
        assert all(not remark.refuses for remark in remarks)


def test_a_context_holds_its_neighbours_by_row_and_text(tmp_path: Path) -> None:
    runs = [sample(seed_index=1), sample(), sample("other"), sample("other", 1, corpus_sha256="d" * 64)]
    found = [context for _, context in contexts([stored(tmp_path, *run) for run in runs], {})]
    assert [one.identity.seed_index for one in found[0].series] == [0, 1]
    assert [len(context.field) for context in found] == [2, 2, 2, 1]
    assert msgspec.to_builtins(found[0].reference) == msgspec.to_builtins(found[2].reference)


def test_tokenizers_are_compared_where_they_should_be_one(tmp_path: Path) -> None:
    """Of one size, made of as much text as recipe and track say; records of older tracks are left alone."""
    honest, events = sample()
    other = changed(honest, "data.tokenizer_sha256", "4" * 64)
    older = changed(other, "identity.track_sha256", "5" * 64)
    less = changed(other, "identity.recipe_resolved", {"data": {"tokenizer_chars": 1000}})
    larger = changed(other, "data.vocab_size", 8192)
    first, folders = stored(tmp_path / "first", honest, events), count()

    def told(record: Record, tracks: dict[str, NamedTrack]) -> list[str]:
        later = changed(record, "created", "2026-12-24T00:00:00Z")
        second = stored(tmp_path / f"{next(folders)}", later, events)
        return list(same_tokenizer(second, contexts([first, second], tracks)[1][1]))

    named = quick_track()
    unscaled = msgspec.structs.replace(named, track=msgspec.structs.replace(named.track, scale={}))
    assert told(honest, {"cpu-quick": named}) == []
    for alone in (larger, older):
        assert told(alone, {"cpu-quick": named}) == []
    assert told(less, {"cpu-quick": unscaled}) == []
    for differing in (other, less):  # the track says how much text
        assert len(told(differing, {"cpu-quick": named})) == 1


def on_an_h200(record: Record, step_s: float, parameters: int) -> Record:
    """The record as if measured on an H200, at so many seconds a step."""
    steps = record.shape.steps
    rate = record.shape.batch_tokens / step_s
    facts = {"device_kind": "cuda", "device_name": "NVIDIA H200"}
    record = changed(changed(record, "machine.facts", facts), "timing.official_s", step_s * steps)
    record = changed(changed(record, "timing.step_median_s", step_s), "timing.tokens_per_s_median", rate)
    record = changed(record, "timing.mfu", rate * record.shape.flops_per_token / 989e12)
    return changed(record, "shape.parameters_total", parameters)


@pytest.mark.parametrize(
    ("step_s", "parameters", "told"),
    [
        (1e-3, 7_000_000, ""),  # 116 GFLOP in a millisecond: 12 % of the peak
        (5e-5, 7_000_000, "its arithmetic"),  # fp8's peak, 1,979 TFLOP/s, takes 59 us
        (1e-3, 10**9, "moving its weights"),  # 8 GB at 4.8 TB/s take 1.67 ms
        (2e-3, 10**9, ""),
    ],
)
def test_no_gpu_is_faster_than_its_data_sheet(
    step_s: float, parameters: int, told: str, tmp_path: Path
) -> None:
    record, events = sample()
    one = stored(tmp_path, on_an_h200(record, step_s, parameters), events)
    [(_, context)] = contexts([one], {})
    found = list(roofline(one, context))
    assert len(found) == (2 if told else 0)
    assert all(told in reason for reason in found)


def test_an_mfu_is_the_rates_share_of_the_declared_peak(tmp_path: Path) -> None:
    record, events = sample()
    record = on_an_h200(record, 1e-3, 7_000_000)
    one = stored(tmp_path, record, events)
    [(_, context)] = contexts([one], {})
    assert list(mfu(one, context)) == []
    better = stored(tmp_path, changed(record, "timing.mfu", 0.6), events)
    assert any("rate and peak give" in reason for reason in mfu(better, context))
