"""Every MPS gate, at each torch version that it tells apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.host.mps import half_precision_refusal, mps_refusals, version_pair

VERSIONS = ("2.11.0", "2.12.1", "2.13.0", "2.14.0")
GOOD: dict[str, Any] = {
    "torch_version": "2.14.0",
    "macos_version": "15.5",
    "environment": {},
    "world_size": 1,
    "micro_batch_tokens": 8192,
    "sequence_length": 1024,
    "vocab": 32768,
    "width": 768,
    "heads": 6,
    "head_dim": 128,
    "dtype": "float32",
}


def refusals(**changes: object) -> list[str]:
    return mps_refusals(**(GOOD | changes))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_moderate_float32_plan_runs_at_every_version(version: str) -> None:
    assert refusals(torch_version=version) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("version", "is_refused"), [("2.11.0", True), ("2.12.1", True), ("2.13.0", False), ("2.14.0", False)]
)
def test_half_precision_starts_at_2_13(version: str, is_refused: bool, dtype: str) -> None:
    found = refusals(torch_version=version, dtype=dtype)
    assert bool(found) is is_refused
    assert all("#195910" in line for line in found)
    assert (half_precision_refusal(version) is not None) is is_refused


@pytest.mark.parametrize("change", [{"micro_batch_tokens": 32769}, {"vocab": 32832}])
@pytest.mark.parametrize(
    ("version", "is_refused"), [("2.11.0", True), ("2.12.1", True), ("2.13.0", True), ("2.14.0", False)]
)
def test_long_inner_dimensions_start_at_2_14(version: str, is_refused: bool, change: dict[str, int]) -> None:
    found = refusals(torch_version=version, **change)
    assert bool(found) is is_refused
    assert all("#193487" in line for line in found)


@given(version=st.sampled_from(VERSIONS), tokens=st.integers(1, 32768), vocab=st.integers(1, 32768))
def test_inner_dimensions_within_the_limit_always_pass(version: str, tokens: int, vocab: int) -> None:
    assert refusals(torch_version=version, micro_batch_tokens=tokens, vocab=vocab, sequence_length=1) == []


@given(
    version=st.sampled_from(VERSIONS),
    sequences=st.integers(1, 64),
    heads=st.integers(1, 64),
    sequence_length=st.sampled_from([512, 1024, 2048, 4096, 8192]),
)
def test_attention_scores_stay_below_2_to_32(
    version: str, sequences: int, heads: int, sequence_length: int
) -> None:
    found = refusals(
        torch_version=version,
        micro_batch_tokens=sequences * sequence_length,
        sequence_length=sequence_length,
        heads=heads,
    )
    is_refused = any("#197636" in line for line in found)
    assert is_refused is (sequences * heads * sequence_length**2 >= 2**32)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"environment": {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}}, "PYTORCH_ENABLE_MPS_FALLBACK"),
        ({"world_size": 2}, "world size 2"),
        ({"macos_version": "13.6.1"}, "macOS >= 14"),
        ({"torch_version": "2.13.0", "vocab": 32768, "width": 65536}, "#188756"),
        ({"dtype": "bfloat16", "sequence_length": 4096, "head_dim": 112}, "graph path"),
        (
            {
                "dtype": "bfloat16",
                "sequence_length": 4096,
                "environment": {"PYTORCH_MPS_DISABLE_PREFILL_ATTENTION": "1"},
            },
            "graph path",
        ),
    ],
)
def test_each_gate_names_its_reason(changes: dict[str, object], word: str) -> None:
    (line,) = refusals(**changes)
    assert word in line
    assert "\n" not in line


@pytest.mark.parametrize("value", ["", "0"])
def test_a_fallback_that_is_off_is_no_fallback(value: str) -> None:
    assert refusals(environment={"PYTORCH_ENABLE_MPS_FALLBACK": value}) == []


def test_all_reasons_are_given_at_once() -> None:
    assert len(refusals(torch_version="2.11.0", world_size=8, dtype="bfloat16", vocab=50304)) == 3


@pytest.mark.parametrize(
    ("version", "pair"),
    [("2.13.0+cpu", (2, 13)), ("2.14.0a0+git1", (2, 14)), ("26", (26, 0)), ("15.5.1", (15, 5))],
)
def test_versions_are_compared_as_numbers(version: str, pair: tuple[int, int]) -> None:
    assert version_pair(version) == pair
