"""The chosen implementations as the functions the model and the optimizer call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from kernels.choices import IMPLEMENTATIONS, REFERENCE, Choice

# Where an implementation lives, loaded when it is asked for: triton is not installed everywhere. References
# are kernels.reference's function of the op's name, Triton's kernels.triton_ops.OP's.
_HOMES = {
    ("attention", REFERENCE): "kernels.reference:sliding_window_attention",
    ("attention", "blocked"): "kernels.sliding_window_attention:sliding_window_attention",
    ("attention", "sdpa"): "kernels.sliding_window_attention:sdpa_attention",
    ("attention", "varlen"): "kernels.sliding_window_attention:varlen_attention",
    ("attention", "triton"): "kernels.triton_ops.sliding_window_attention:sliding_window_attention",
    ("fp8_linear", REFERENCE): "kernels.reference_fp8:fp8_linear",
    ("muon_direction", REFERENCE): "kernels.reference:muon_direction_",
    ("muon_direction", "in-place"): "kernels.muon_step:muon_direction_",
    ("muon_direction", "triton"): "kernels.triton_ops.muon_step:muon_direction_",
    ("muon_update", REFERENCE): "kernels.reference:muon_update_",
    ("muon_update", "in-place"): "kernels.muon_step:muon_update_",
    ("muon_update", "triton"): "kernels.triton_ops.muon_step:muon_update_",
    ("adamw", REFERENCE): "kernels.reference:adamw_",
    ("adamw", "fused"): "kernels.adamw:adamw_",
    ("adamw", "triton"): "kernels.triton_ops.adamw:adamw_",
}
COMPILE_THEIR_PASSES = (
    ("linear_cross_entropy", "chunked"),
    ("muon_direction", "in-place"),
    ("polar_express", "two-forms"),
    ("muon_update", "in-place"),
)


class Kernels(NamedTuple):
    """One function an op; signatures are those of `kernels.reference`."""

    embedding: Callable[..., Tensor]
    mix_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    rotary_qk_norm: Callable[..., tuple[Tensor, Tensor]]
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    relu_squared_mlp: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]
    muon_direction: Callable[..., Tensor]
    polar_express: Callable[..., Tensor]
    muon_update: Callable[..., None]
    adamw: Callable[..., None]
    bigram_residual: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    fp8_linear: Callable[..., Tensor]


def implementation(op: str, name: str) -> Callable[..., Any]:
    """The function that implements an op; `kernels.reference` has its signature."""
    assert name in IMPLEMENTATIONS[op], f"{op} has no implementation {name!r}"
    package = {REFERENCE: "kernels.reference", "triton": f"kernels.triton_ops.{op}"}.get(
        name, f"kernels.{op}"
    )
    module, _, function = _HOMES.get((op, name), f"{package}:{op}").partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def bind(choices: tuple[Choice, ...], *, compiled: bool) -> Kernels:
    """The functions behind the choices.

    Args:
        compiled: whether the loss's pass over the logits and Muon's elementary ones go through torch.compile.
    """
    chosen = {choice.op: choice.implementation for choice in choices}
    functions = {op: implementation(op, chosen.get(op, REFERENCE)) for op in Kernels._fields}
    for op, name in COMPILE_THEIR_PASSES:
        if chosen.get(op) == name:
            functions[op] = partial(functions[op], compiled=compiled)
    return Kernels(**functions)
