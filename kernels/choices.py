"""Which implementation serves each op on a device, why, and how large its buffers are. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

# Elements of a chunk's logits: 8 MB in bf16 stays in the last-level cache of a CPU and is large enough for
# the read-modify-write of the head's gradient, 8 V D bytes a chunk, not to count.
CHUNK_ELEMENTS = 4 * 2**20


class Choice(NamedTuple):
    """One op's implementation and the reason it was chosen."""

    op: str
    implementation: str
    reason: str


def choose(device_kind: str, windowed: bool) -> tuple[Choice, ...]:
    """The implementation of every op on this kind of device.

    Args:
        device_kind: "cuda", "mps" or "cpu".
        windowed: whether any layer's window is shorter than the sequence.
    """
    return (
        Choice(
            "embedding",
            "deterministic",
            "Inductor's gradient is float32 atomic adds, whose order changes the bits",
        ),
        _attention(device_kind, windowed),
        Choice("relu_squared", "keep-output", "halves the MLP's kept activations"),
        Choice("linear_cross_entropy", "chunked", "the logits never exist whole"),
    )


def _attention(device_kind: str, windowed: bool) -> Choice:
    if device_kind == "cuda":
        rest = "; shorter windows go by query blocks" if windowed else ""
        return Choice(
            "attention", "sdpa+blocked" if windowed else "sdpa", f"flash kernels serve full attention{rest}"
        )
    where = (
        "bf16 matrix units, not SDPA's CPU kernel"
        if device_kind == "cpu"
        else "SDPA's training path keeps T x T"
    )
    return Choice("attention", "blocked", where)


def rows_per_chunk(vocab_size: int) -> int:
    """Largest power of two of rows whose logits fit `CHUNK_ELEMENTS`, at least 128."""
    return max(1 << (max(CHUNK_ELEMENTS // vocab_size, 1).bit_length() - 1), 128)
