"""How many bytes a training step holds at its peak, and how many rows fit. Imports no torch."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kernels.choices import rows_per_chunk
from model.config import ModelConfig
from model.flops import MLP_EXPANSION, bfloat16_parameters, parameters

# Tensors of the width of the residual stream that a layer keeps for its backward: counted in the compiled
# graph (torch 2.13, CPU, d4: 47 in 4 layers).
KEPT_WIDTHS_PER_LAYER = 12
KEPT_WIDTHS_OUTSIDE = 4  # embedding, smear, backout, final norm
ATTENTION_BLOCK = 256  # queries of a block
ATTENTION_PAIR_BYTES = 10  # of a query and a key: logit and its gradient in float32, probability in bf16
# Of a logit in float16, whose loss is eager: itself in float16, then in float32, capped, as a logarithm of a
# probability and as a gradient.
WHOLE_LOGIT_BYTES = 2 + 4 * 4
# What a process holds before the model exists: Python, torch, the compiler (CPU: measured 340 to 600 MB, the
# larger after compiling), and a CUDA context with its workspaces.
PROCESS_BYTES = {"cpu": 600 * 10**6, "mps": 500 * 10**6, "cuda": 1500 * 10**6}
# On a CPU more rows at once mostly cost memory; a choice, not a measured optimum.
CPU_TOKENS_AT_ONCE = 8192
# Share of a device's memory a plan may fill: allocators fragment.
USABLE_SHARE = 0.92


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes a device, by what they are."""

    process_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    loss_bytes: int

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(getattr(self, field) for field in self.__struct_fields__)


class HasMemory(Protocol):
    """What `fitting_sequences` needs of a machine."""

    @property
    def device_kind(self) -> str:
        """cuda, mps or cpu."""

    @property
    def device_memory_bytes(self) -> int:
        """Bytes of one device."""


def estimate_memory(
    config: ModelConfig, dtype: str, sequences: int, device_kind: str, world_size: int
) -> MemoryEstimate:
    """The peak of one device that takes `sequences` rows at once; optimizer states are sharded."""
    groups = parameters(config)
    total, matrices = sum(groups.values()), groups["matrices"]
    compute_bytes = 4 if dtype == "float32" else 2
    tokens = sequences * config.sequence_length
    cast = (matrices + groups["lm_head"]) * compute_bytes if compute_bytes != 4 else 0
    halved = bfloat16_parameters(config)
    moments = 4 * matrices + 8 * (total - matrices) - 4 * halved
    is_half = dtype == "float16"  # whose loss and MLP are the references, and whose steps may be skipped
    rows = tokens if is_half else min(rows_per_chunk(config.vocab_size), tokens)
    logit_bytes = WHOLE_LOGIT_BYTES if is_half else 2 * compute_bytes + 4
    return MemoryEstimate(
        process_bytes=PROCESS_BYTES[device_kind],
        weights_bytes=4 * total - 2 * halved + cast,
        gradients_bytes=4 * total - 2 * halved,
        optimizer_bytes=(moments + (skippable_bytes(config) if is_half else 0)) // world_size,
        activations_bytes=tokens
        * activation_bytes_per_token(config, compute_bytes, keeps_squares_only=not is_half)
        + attention_bytes(config, dtype, sequences, device_kind),
        loss_bytes=rows * config.vocab_size * logit_bytes + 2 * 4 * groups["lm_head"],
    )


def skippable_bytes(config: ModelConfig) -> int:
    """What is kept of the largest group while a step that may be skipped is taken: masters and moments."""
    matrices = config.depth * MLP_EXPANSION * config.width**2
    tables = config.vocab_padded, config.bigram_rows
    return max(2 * 4 * matrices, 3 * 4 * max(tables) * config.width)


def activation_bytes_per_token(
    config: ModelConfig, compute_bytes: int, keeps_squares_only: bool = True
) -> int:
    """Bytes that the layers keep a token until the backward."""
    of_mlp = MLP_EXPANSION if keeps_squares_only else 2 * MLP_EXPANSION
    layer = (KEPT_WIDTHS_PER_LAYER + of_mlp) * config.width
    widths = config.depth * layer + KEPT_WIDTHS_OUTSIDE * config.width
    return widths * compute_bytes


def attention_bytes(config: ModelConfig, dtype: str, sequences: int, device_kind: str) -> int:
    """What one block of queries takes while it is worked on; CUDA's flash attention of bf16: nothing."""
    if device_kind == "cuda" and dtype == "bfloat16":
        return 0
    block = min(ATTENTION_BLOCK, config.sequence_length)
    keys = min(max(config.window_sizes) + block, config.sequence_length)
    return sequences * config.num_heads * block * keys * ATTENTION_PAIR_BYTES


def fitting_sequences(config: ModelConfig, dtype: str, rows: int, machine: HasMemory, world_size: int) -> int:
    """The largest power of two of rows, dividing `rows`, whose estimate fits; at least 1."""
    sequences = rows & -rows
    if machine.device_kind == "cpu":
        sequences = min(sequences, max(CPU_TOKENS_AT_ONCE // config.sequence_length, 1))
        sequences = 1 << (sequences.bit_length() - 1)
    budget = USABLE_SHARE * machine.device_memory_bytes
    while sequences > 1 and (
        estimate_memory(config, dtype, sequences, machine.device_kind, world_size).total_bytes > budget
    ):
        sequences //= 2
    return sequences
