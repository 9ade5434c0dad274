"""Which kernels a plan uses: by the model's levers, the device and the dtype; and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from bench.proving.subject import IN_FLOAT16
from bench.spec.kernel_choices import kernel_choices
from bench.spec.plan import model_config
from kernels.choices import (
    IMPLEMENTATIONS,
    NOT_ON_MPS,
    OPTIMIZER_OPS,
    REFERENCE,
    dtype_given,
    provable,
    runs_in,
)
from tests.spec.recipes import CPU, H100X8, plan, recipe

FLOAT16 = "[precision]\ncompute = 'float16'\n"
EVERY_OP = "[model.bigram]\nfactor = 5\n"


@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
def test_in_float16_only_what_is_proved_in_it_is_chosen(kind: str) -> None:
    """Or a reference; or what is given float32."""
    made = recipe(EVERY_OP + FLOAT16)
    choices = kernel_choices(made, model_config(made), kind)
    assert {choice.op for choice in choices} == set(IMPLEMENTATIONS) - {"fp8_linear"}
    for choice in choices:
        assert runs_in(choice.op, choice.implementation, "float16")
        if choice.op not in OPTIMIZER_OPS and choice.implementation != REFERENCE:
            assert (choice.op, choice.implementation) in IN_FLOAT16
    assert {choice.op: choice.implementation for choice in choices}["adamw"] == "fused"


@pytest.mark.parametrize(
    ("kind", "in_bfloat16", "in_float32"),
    [("cpu", "blocked", "sdpa"), ("mps", "blocked", "blocked"), ("cuda", "varlen", "sdpa")],
)
def test_in_float32_attention_alone_changes(kind: str, in_bfloat16: str, in_float32: str) -> None:
    """varlen takes no float32; SDPA takes no bfloat16 at the blocks' speed, and keeps T x T on a Mac."""
    half, whole = (
        dict(choice[:2] for choice in kernel_choices(made, model_config(made), kind))
        for made in (recipe(EVERY_OP), recipe(EVERY_OP + "[precision]\ncompute = 'float32'\n"))
    )
    assert (half.pop("attention"), whole.pop("attention")) == (in_bfloat16, in_float32)
    assert half == whole


@pytest.mark.parametrize(
    ("table", "refusal"),
    [
        ("[kernels]\nattention = 'varlen'\n", "kernels.attention: varlen is not proved in float16"),
        ("[kernels]\nadamw = 'triton'\n", "kernels.adamw: triton is not proved in float16"),
        ("[kernels]\nmix_rms_norm = 'triton'\n", "kernels.mix_rms_norm: triton is not proved in float16"),
        ("[kernels]\nlinear_cross_entropy = 'chunked'\n", "kernels.linear_cross_entropy: chunked is not"),
    ],
)
def test_what_is_asked_for_and_not_proved_in_float16_is_refused(table: str, refusal: str) -> None:
    [found] = plan(table + FLOAT16, H100X8).refusals
    assert found.startswith(refusal)
    assert not plan(table, H100X8).refusals


@pytest.mark.parametrize(("name", "compute"), [("sdpa", "bfloat16"), ("varlen", "float32")])
def test_what_takes_another_dtype_is_refused(name: str, compute: str) -> None:
    asked = f"[kernels]\nattention = '{name}'\n[precision]\ncompute = '{compute}'\n"
    assert plan(asked, H100X8).refusals == [
        f"kernels.attention: {name} is not proved in {compute}; leave it to the plan"
    ]


MAC = msgspec.structs.replace(CPU, device_kind="mps")


@pytest.mark.parametrize("compute", ["bfloat16", "float32", "float16"])
def test_what_a_mac_cannot_is_never_chosen_nor_proved_there(compute: str) -> None:
    made = recipe(f"{EVERY_OP}[precision]\ncompute = '{compute}'\n")
    choices = kernel_choices(made, model_config(made), "mps")
    assert not {choice.implementation for choice in choices} & set(NOT_ON_MPS)
    assert not {name for op in IMPLEMENTATIONS for name in provable(op, "mps")} & set(NOT_ON_MPS)


def test_fp8_is_refused_on_a_mac() -> None:
    assert (
        "precision.fp8 on mps: no Mac multiplies fp8"
        in plan("[precision]\nfp8 = 'tensorwise'\n", MAC).refusals
    )


def test_sdpa_is_not_for_a_mac() -> None:
    asked = "[kernels]\nattention = 'sdpa'\n[precision]\ncompute = 'float32'\n"
    assert "kernels.attention: sdpa is not for MPS; leave it to the plan" in plan(asked, MAC).refusals
    assert "sdpa" not in provable("attention", "mps")
    assert "sdpa" in provable("attention", "cpu")


def test_fp8_beside_float16_is_refused() -> None:
    [found] = plan(FLOAT16 + "fp8 = 'tensorwise'\n", H100X8).refusals
    assert found.startswith("precision.fp8 with float16")


def test_what_the_muon_step_asks_of_triton_may_run() -> None:
    """It is given float32."""
    table = "[kernels]\nmuon_update = 'triton'\npolar_express = 'triton'\nmuon_direction = 'triton'\n"
    assert not plan(table + FLOAT16, H100X8).refusals
    assert len(plan(table + FLOAT16, CPU).refusals) >= 3


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_the_optimizer_is_given_float32(op: str) -> None:
    assert dtype_given(op, "float16") == ("float32" if op in OPTIMIZER_OPS else "float16")
    assert dtype_given(op, "bfloat16") == "bfloat16"
    assert dtype_given(op, "float32") == "float32"
