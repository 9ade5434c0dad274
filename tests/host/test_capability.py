"""Capability is what a device did: products against float64, a compiled function against the eager one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import PlanRefused
from bench.host import capability
from bench.host.capability import MAX_ERROR, compiled, product, relative_error
from bench.host.device import Device, open_device


@pytest.fixture(scope="module")
def cpu() -> Device:
    return open_device("cpu")


@pytest.mark.parametrize("name", MAX_ERROR)
def test_the_products_of_a_cpu_are_right(cpu: Device, name: str) -> None:
    assert product(cpu, name).state == "ok"


def test_a_product_as_wrong_as_bfloat16s_does_not_pass_for_float32(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_ERROR, "bfloat16", MAX_ERROR["float32"])
    with pytest.raises(PlanRefused, match="from float64"):
        product(cpu, "bfloat16")


def test_a_dtype_the_device_refuses_is_a_note(cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cpu.backend), "dtype_refusal", lambda self, name: "not here")
    assert product(cpu, "bfloat16").state == "note"


@given(st.floats(1e-6, 0.5))
def test_the_relative_error_is_that_of_the_scale(error: float) -> None:
    expected = torch.linspace(1.0, 2.0, 10, dtype=torch.float64)
    assert relative_error(expected * (1 + error), expected) == pytest.approx(error, rel=1e-6)


def test_a_compiler_that_fails_is_a_fault_with_its_reason(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()  # what `fullgraph` refuses
        return x

    monkeypatch.setattr(capability, "_function", broken)
    found = compiled(cpu)
    assert (found.state, found.exit_code) == ("fault", 3)
    assert found.says.startswith("torch.compile fails: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_torch_compile_works_here(cpu: Device) -> None:
    found = compiled(cpu)
    assert found.state == "ok", found.says
