"""What a proof must be to vouch for a run: of that kernel, device and library, long enough, within bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.proving.proof import LEAST_EXAMPLES, Proof, needed_versions, problems_of_proofs, proof_key
from tests.records.sample import KERNEL, sample_proof

KERNELS = [
    {"op": "mix_rms_norm", "implementation": "reference"},
    {"op": KERNEL[0], "implementation": KERNEL[1]},
]
VERSIONS = {"torch": "2.13.0", "triton": "3.7.1", "numpy": "2.4.6"}


def problems(*proofs: Proof, device: str = "Example CPU", versions: dict[str, str] = VERSIONS) -> list[str]:
    return list(problems_of_proofs(KERNELS, proofs, device, versions))


def test_a_whole_proof_vouches_and_references_need_none() -> None:
    assert problems(sample_proof()) == []
    assert problems(sample_proof(), msgspec.structs.replace(sample_proof(), op="adamw")) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"op": "adamw"}, "no proof of kernel"),
        ({"implementation": "triton"}, "no proof of kernel"),
        ({"schema": 0}, "schema"),
        ({"device_name": "Another CPU"}, "Another CPU"),
        ({"versions": {"torch": "2.11.0"}}, "2.11.0"),
        ({"num_examples": LEAST_EXAMPLES - 1}, "examples"),
        ({"worst_error_ratios": {}}, "no property"),
        ({"worst_error_ratios": {"value": 1.01}}, "times its bound"),
        ({"worst_error_ratios": {"value": float("nan")}}, "times its bound"),
        ({"worst_error_ratios": {"value": -0.1}}, "times its bound"),
    ],
)
def test_anything_else_is_named(change: dict[str, Any], says: str) -> None:
    (problem,) = problems(msgspec.structs.replace(sample_proof(), **change))
    assert KERNEL[0] in problem
    assert says in problem


def test_no_proof_is_a_problem() -> None:
    assert len(problems()) == 1


def test_triton_decides_about_triton_kernels_only() -> None:
    assert needed_versions("chunked", VERSIONS) == {"torch": "2.13.0"}
    assert needed_versions("triton", VERSIONS) == {"torch": "2.13.0", "triton": "3.7.1"}
    assert needed_versions("triton", {}) == {"torch": "", "triton": ""}


@given(st.lists(st.text(max_size=3), min_size=5, max_size=5), st.integers(0, 4), st.text(min_size=4))
def test_the_key_depends_on_everything(parts: list[str], changed: int, other: str) -> None:
    def key(op: str, name: str, sources: str, device: str, torch: str) -> str:
        return proof_key(op, name, sources, device, {"torch": torch})

    assert key(*parts) == key(*parts)
    assert key(*parts) != key(*parts[:changed], other, *parts[changed + 1 :])
