"""The properties of every op, by op."""

from __future__ import annotations

from importlib import import_module

from bench.proving.property import Property
from kernels.choices import IMPLEMENTATIONS


def properties_of(op: str) -> tuple[Property, ...]:
    """What every implementation of the op has to meet, on every device."""
    assert op in IMPLEMENTATIONS, f"no op {op!r}"
    found: tuple[Property, ...] = import_module(f"bench.proving.properties.{op}").PROPERTIES
    return found
