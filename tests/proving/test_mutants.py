"""Every mutant of every op fails some property: properties that pass what is wrong would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from bench.proving.properties.table import properties_of
from bench.proving.property import check
from bench.proving.subject import TORCH_DTYPES, Subject
from kernels.choices import IMPLEMENTATIONS, REFERENCE
from kernels.dispatch import implementation

NUM_EXAMPLES = 60


def interpreted(name: str, mutant: Callable[..., Any]) -> bool:
    """Whether this is a mutant of a Triton kernel's source."""
    return name.startswith("kernel:") or getattr(mutant, "__qualname__", "").startswith("mutated.")


MUTANTS = {op: import_module(f"tests.proving.mutants.{op}").MUTANTS for op in IMPLEMENTATIONS}
CASES = [
    pytest.param(op, mutant, id=f"{op}-{name}", marks=[pytest.mark.slow] if interpreted(name, mutant) else [])
    for op, named in MUTANTS.items()
    for name, mutant in named.items()
]


def survives(op: str, mutant: Callable[..., Any]) -> bool:
    """Whether the mutant meets every property."""
    mutated = Subject(op, "mutant", mutant, implementation(op, REFERENCE), torch.device("cpu"), TORCH_DTYPES)
    for prop in properties_of(op):
        try:
            check(prop, mutated, NUM_EXAMPLES, seed=0, shrink=False)
        except Exception:  # killed: by an assertion, or by whatever its flaw led to
            return False
    return True


@pytest.mark.parametrize(("op", "mutant"), CASES)
def test_mutant_is_killed(op: str, mutant: Callable[..., Any]) -> None:
    assert not survives(op, mutant)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_every_op_has_mutants(op: str) -> None:
    assert len(MUTANTS[op]) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_what_is_not_mutated_survives(op: str) -> None:
    """At the mutants' seed and number of examples; at others it is among the properties' own tests."""
    assert survives(op, implementation(op, REFERENCE))
