"""The estimate of memory: monotone, and the rows that it lets a device take."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import PlanRefused
from bench.spec.memory import attention_bytes, estimate_memory, fitting_sequences
from bench.spec.plan import model_config
from tests.spec.recipes import H100X8, TOMLS, plan, recipe


@given(toml=TOMLS, rows=st.integers(1, 64), kind=st.sampled_from(["cpu", "mps", "cuda"]))
def test_memory_grows_with_rows_and_shrinks_with_devices(toml: str, rows: int, kind: str) -> None:
    config, dtype = model_config(recipe(toml)), recipe(toml).precision.compute
    sizes = [estimate_memory(config, dtype, rows + more, kind, 1).total_bytes for more in (0, 1, 2)]
    assert sizes == sorted(sizes)
    assert sizes[2] > sizes[0] > 0
    sharded = [estimate_memory(config, dtype, rows, kind, world).total_bytes for world in (1, 2, 8)]
    assert sharded == sorted(sharded, reverse=True)


@given(toml=TOMLS, rows=st.integers(1, 4096), gibibytes=st.integers(1, 200))
def test_the_rows_at_once_are_the_most_that_fit(toml: str, rows: int, gibibytes: int) -> None:
    config, dtype = model_config(recipe(toml)), recipe(toml).precision.compute
    machine = msgspec.structs.replace(H100X8, device_memory_bytes=gibibytes * 2**30)
    found = fitting_sequences(config, dtype, rows, machine, 8)
    assert found.bit_count() == 1
    assert rows % found == 0
    if found > 1:
        assert (
            estimate_memory(config, dtype, found, "cuda", 8).total_bytes <= 0.92 * machine.device_memory_bytes
        )
    if rows % (2 * found) == 0:
        assert (
            estimate_memory(config, dtype, 2 * found, "cuda", 8).total_bytes
            > 0.92 * machine.device_memory_bytes
        )


def test_too_little_memory_is_refused_with_its_size() -> None:
    small = msgspec.structs.replace(H100X8, device_memory_bytes=8 * 2**30)
    [refusal] = plan("[model]\ndepth = 24", small).refusals
    assert refusal.startswith("needs ")
    assert "H100 as declared has 8.0 GiB" in refusal


def test_models_beyond_counting_are_refused() -> None:
    toml = "[model]\ndepth = 128\naspect_ratio = 1024\nhead_dim = 8\nsequence_length = 65536\n"
    with pytest.raises(PlanRefused, match="bytes"):
        plan(toml + "[horizon]\niterations = 1\n[batch]\ntokens = 70368744177664\ndevice_sequences = 65536")


def test_embeddings_in_bfloat16_are_half_of_everything_that_there_is_of_them() -> None:
    wholes, halves = (
        estimate_memory(
            model_config(recipe(f"[precision]\nembeddings = '{dtype}'")), "bfloat16", 4, "cuda", 2
        )
        for dtype in ("float32", "bfloat16")
    )
    tables = 32768 * 768 * (1 + 6)  # d12: tokens', and values' in every second layer
    assert wholes.weights_bytes - halves.weights_bytes == 2 * tables
    assert wholes.gradients_bytes - halves.gradients_bytes == 2 * tables
    assert wholes.optimizer_bytes - halves.optimizer_bytes == 4 * tables // 2
    assert wholes.activations_bytes == halves.activations_bytes
    assert wholes.loss_bytes == halves.loss_bytes


def test_float16_is_counted_with_two_bytes_whole_logits_and_what_a_skip_keeps() -> None:
    config = model_config(recipe("[model]\ndepth = 12"))
    sizes = {
        dtype: estimate_memory(config, dtype, 4, "cuda", 1) for dtype in ("float16", "bfloat16", "float32")
    }
    half, brain, whole = sizes.values()
    block = attention_bytes(config, "float16", 4, "cuda")  # flash attention, which takes none, is of bf16
    assert (
        block
        == attention_bytes(config, "float32", 4, "cuda")
        > attention_bytes(config, "bfloat16", 4, "cuda")
    )
    assert brain.activations_bytes == (whole.activations_bytes - block) // 2
    squared = 2 * 4 * config.width * 12 * 4 * 2048  # what the squares were taken of, a token and layer
    assert half.activations_bytes == brain.activations_bytes + squared + block
    assert half.weights_bytes == brain.weights_bytes
    assert half.loss_bytes - 8 * config.vocab_padded * config.width == 18 * 4 * 2048 * config.vocab_size
    assert half.optimizer_bytes - brain.optimizer_bytes == max(
        12 * config.vocab_padded * config.width, 8 * 12 * 4 * config.width**2
    )
