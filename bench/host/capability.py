"""What a device can do, found out by doing it: products in each dtype, and torch.compile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.errors import PlanRefused
from bench.host.device import Device
from bench.host.doctor import Finding, fault, looked_at
from bench.host.half_products import without_units

SIZE = 256
# Largest relative Frobenius error against float64: a rounding of each product and sum to float32 leaves some
# 1e-7, inputs rounded to TF32's 10 bits 3e-4; one rounding of the result to bfloat16 leaves
# 1.7e-3, to float16 an eighth of that.
MAX_ERROR = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 5e-4}


def capability(device: Device) -> Iterator[Finding]:
    """Findings of what was run on the device, quick ones first."""
    for name in MAX_ERROR:
        yield looked_at(name, lambda name=name: product(device, name))  # type: ignore[misc]
    yield compiled(device)


def product(device: Device, name: str) -> Finding:
    """A matrix product in this dtype, against float64 on the CPU.

    Raises:
        PlanRefused: the result is wrong.
    """
    try:
        dtype = device.compute_dtype(name)
    except PlanRefused as refused:  # a run may still compute in the other dtype
        return Finding(name=name, state="note", says=refused.message, mend=refused.hint)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator).to(dtype) for _ in range(2))
    found = (a.to(device.torch_device) @ b.to(device.torch_device)).cpu()
    error = relative_error(found, a.double() @ b.double())
    says = f"a {SIZE} x {SIZE} product is {error:.1e} from float64's"
    if not error <= MAX_ERROR[name]:
        raise PlanRefused(f"{says}, more than {MAX_ERROR[name]:.0e}", hint="do not trust runs on this device")
    if device.kind == "cpu" and dtype in without_units():
        says += "; taken in float32, the processor having no units for it"
    return Finding(name=name, says=says)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, Frobenius norms in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def compiled(device: Device) -> Finding:
    """Whether torch.compile makes a function that computes what it should."""
    refusal = device.compile_refusal()
    if refusal is not None:
        return Finding(name="compile", state="note", says=f"not used: {refusal}")
    values = torch.linspace(-3.0, 3.0, 1000, device=device.torch_device)
    begun_s = time.perf_counter()
    try:
        found = torch.compile(_function, fullgraph=True, dynamic=False)(values)
    except Exception as error:  # a missing compiler, header or cache folder: each has an exception of its own
        reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
        hint = "it needs a C++ compiler and Python's headers (Debian: apt install g++ python3-dev)"
        return fault("compile", PlanRefused(f"torch.compile fails: {reason}", hint=hint))
    error_ratio = relative_error(found.cpu(), _function(values).cpu())
    if not error_ratio <= MAX_ERROR["float32"]:
        message = f"a compiled function is {error_ratio:.1e} from the eager one"
        return fault("compile", PlanRefused(message, hint="set [compile] enabled = false"))
    return Finding(name="compile", says=f"torch.compile works ({time.perf_counter() - begun_s:.1f} s)")


def _function(x: Tensor) -> Tensor:
    return (15.0 * torch.tanh(x / 15.0)).exp() / (1.0 + x.square())
