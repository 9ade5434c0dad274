"""Every implementation meets every property of its op: on the CPU, Triton's kernels in the interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from bench.proving.properties.table import properties_of
from bench.proving.property import Property, check
from bench.proving.subject import subject
from kernels.choices import IMPLEMENTATIONS, REFERENCE, provable

NUM_EXAMPLES = 25
NUM_INTERPRETED, NUM_SLOW_EXAMPLES = 2, 15  # the interpreter takes 0.1 to 0.6 s an example
CASES = [
    pytest.param(op, name, prop, id=f"{op}-{name}-{prop.__name__}")
    for op in IMPLEMENTATIONS
    for name in (REFERENCE, *provable(op, "cpu", interpreted=find_spec("triton") is not None))
    for prop in properties_of(op)
]


def seed() -> int:
    """In CI the same examples every time, so that a red build is the change's doing."""
    return 0 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "big")


@pytest.mark.parametrize(("op", "name", "prop"), CASES)
def test_property(op: str, name: str, prop: Property) -> None:
    num_examples = NUM_INTERPRETED if name == "triton" else NUM_EXAMPLES
    check(prop, subject(op, name, torch.device("cpu")), num_examples, seed())


@pytest.mark.slow
@pytest.mark.parametrize(("op", "name", "prop"), [case for case in CASES if case.values[1] == "triton"])
def test_property_of_interpreted_kernel(op: str, name: str, prop: Property) -> None:
    check(prop, subject(op, name, torch.device("cpu")), NUM_SLOW_EXAMPLES, seed() + 1)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_every_op_has_properties_that_say_what_they_hold(op: str) -> None:
    properties = properties_of(op)
    assert len(properties) >= 4
    assert len({prop.__name__ for prop in properties}) == len(properties)
    assert all(prop.__doc__ for prop in properties)
