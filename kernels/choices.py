"""Which implementation serves each op on a device, why, and how large its buffers are. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

# Elements of a chunk's logits: 8 MB in bf16 stays in the last-level cache of a CPU. With fewer rows than
# LEAST_CHUNK_ROWS the read-modify-write of the head's gradient, 8 V D bytes a chunk, is what counts: at
# V = 32768, D = 384, 128 rows instead of 512 took 1.1 to 1.4 times as long.
CHUNK_ELEMENTS = 4 * 2**20
LEAST_CHUNK_ROWS = 512

# Every op with its implementations. "reference" is eager torch, to be compiled with its neighbours: what all
# others are proved against.
REFERENCE = "reference"
IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "embedding": (REFERENCE, "sorted", "triton"),
    "mix_rms_norm": (REFERENCE, "triton"),
    "rotary_qk_norm": (REFERENCE, "triton"),
    "attention": (REFERENCE, "blocked", "sdpa", "varlen", "triton"),
    "relu_squared_mlp": (REFERENCE, "keep-output", "triton"),
    "linear_cross_entropy": (REFERENCE, "chunked", "triton"),
    "muon_direction": (REFERENCE, "in-place", "triton"),
    "polar_express": (REFERENCE, "two-forms", "triton"),
    "muon_update": (REFERENCE, "in-place", "triton"),
    "adamw": (REFERENCE, "fused", "triton"),
    "bigram_residual": (REFERENCE, "sorted", "triton"),
    "fp8_linear": (REFERENCE, "scaled-mm", "triton"),
}
CUDA_ONLY = ("triton", "varlen")
# SDPA keeps T x T there, the table's gradient is a sum of atomic adds in any case, and no product is of fp8.
NOT_ON_MPS = ("sdpa", "sorted", "scaled-mm")
OPTIMIZER_OPS = ("muon_direction", "polar_express", "muon_update", "adamw")
# Used by every model; the others belong to levers.
ALWAYS = tuple(op for op in IMPLEMENTATIONS if op not in ("bigram_residual", "fp8_linear"))

_FUSED_BY_COMPILER = "left to the compiler, which fuses it with its neighbours"
_SORTED = "Inductor's gradient is float32 atomic adds, whose order changes the bits"
_KEEP_OUTPUT = "halves the MLP's kept activations"
_CHUNKED = "the logits never exist whole"
_BLOCKED = "T x window work, in batched products"
_TWO_FORMS = "Gram form for long float32 matrices, standard form for the rest"
_IN_PLACE = "no temporary of its own for each of the stacked matrices"
_FUSED_ADAMW = "torch's multi-tensor step: one pass over parameters and moments"
_PREFERRED: dict[str, dict[str, tuple[str, str]]] = {
    "cpu": {
        "embedding": ("sorted", _SORTED),
        "mix_rms_norm": (REFERENCE, _FUSED_BY_COMPILER),
        "rotary_qk_norm": (REFERENCE, _FUSED_BY_COMPILER),
        "attention": ("blocked", _BLOCKED),
        "relu_squared_mlp": ("keep-output", _KEEP_OUTPUT),
        "linear_cross_entropy": ("chunked", _CHUNKED),
        "muon_direction": ("in-place", _IN_PLACE),
        "polar_express": ("two-forms", _TWO_FORMS),
        "muon_update": ("in-place", _IN_PLACE),
        "adamw": ("fused", _FUSED_ADAMW),
        "bigram_residual": ("sorted", _SORTED),
        "fp8_linear": (
            REFERENCE,
            "no processor multiplies fp8 codes: torch's scaled product takes 0.1 s a row",
        ),
    }
}
_UNSORTED = "Metal sums a table's gradient by atomic adds: a sorted sum would be no other"
_PREFERRED["mps"] = _PREFERRED["cpu"] | {
    "attention": ("blocked", "SDPA's training path there keeps T x T"),
    "embedding": (REFERENCE, _UNSORTED),
    "bigram_residual": (REFERENCE, _UNSORTED),
}
_PREFERRED["cuda"] = _PREFERRED["cpu"] | {
    "embedding": ("triton", "one pass over sorted rows, bf16 in, float32 sums, no atomics"),
    "attention": ("varlen", "torch's flash attention with a window"),
    "relu_squared_mlp": ("triton", "relu^2 and its derivative in the epilogues of the products"),
    "linear_cross_entropy": ("triton", "one pass turns a chunk's logits into its gradient"),
    "muon_direction": ("triton", "momentum and its cast in one pass"),
    "polar_express": (
        "triton",
        "half the tiles of the symmetric products; MuonEq in the pass that normalises",
    ),
    "muon_update": ("triton", "norms, decay and update in one pass over the parameters"),
    "bigram_residual": ("triton", "one pass over sorted rows, bf16 in, float32 sums, no atomics"),
    "fp8_linear": ("triton", "largest value, cast and transposed copy in one read"),
}


# What serves the ops that work in the compute dtype when that is float16; and AdamW, whose step count is on
# the device there. The others are given float32 or are left to the compiler.
_FLOAT16: dict[str, tuple[str, str]] = {
    "embedding": ("sorted", _SORTED),
    "mix_rms_norm": (REFERENCE, _FUSED_BY_COMPILER),
    "rotary_qk_norm": (REFERENCE, _FUSED_BY_COMPILER),
    "attention": ("blocked", "T x window work; flash attention and Triton's are not proved in float16"),
    "relu_squared_mlp": (
        REFERENCE,
        "float16 squares vanish or overflow: their roots are not what was squared",
    ),
    "linear_cross_entropy": (REFERENCE, "the others keep e^logit, and e^15 is beyond float16's 65,504"),
    "adamw": ("fused", "the only one pass that takes its step count from the device"),
    "bigram_residual": ("sorted", _SORTED),
}

# Implementations of one compute dtype.
_ONLY_IN = {"sdpa": "float32", "varlen": "bfloat16"}
# torch's flash attention with a window takes no float32. Its attention on a CPU beats the blocks there: 43 ms
# a layer of quick, forward and backward, against 62 to 69, where in bfloat16 it takes 280 against 55 (AVX2).
_FLOAT32: dict[str, tuple[str, str]] = {
    "attention": ("sdpa", "torch's own where the window covers the row, in blocks elsewhere"),
}


class Choice(NamedTuple):
    """One op's implementation and the reason it was chosen."""

    op: str
    implementation: str
    reason: str


def choose(
    device_kind: str,
    asked: Mapping[str, str] | None = None,
    ops: Collection[str] = ALWAYS,
    dtype: str = "bfloat16",
) -> tuple[Choice, ...]:
    """The implementation of every op a model uses on this kind of device.

    Args:
        device_kind: "cuda", "mps" or "cpu".
        asked: implementations that the recipe names, by op; "auto" leaves the choice to the table above.
        ops: what the model uses.
        dtype: the compute dtype.
    """
    asked = asked or {}
    preferred = _PREFERRED[device_kind] | {"float16": _FLOAT16, "float32": _FLOAT32}.get(dtype, {})
    if device_kind == "mps":
        ruled_out = {op for op, (name, _) in preferred.items() if name in NOT_ON_MPS}
        preferred |= {op: _PREFERRED["mps"][op] for op in ruled_out}
    choices = []
    for op in ops:
        name = asked.get(op, "auto")
        if name == "auto":
            choices.append(Choice(op, *preferred[op]))
        else:
            choices.append(Choice(op, name, "asked for by the recipe"))
    return tuple(choices)


def dtype_given(op: str, compute: str) -> str:
    """The dtype that an op is given in a run of this compute dtype.

    The optimizer's ops work on float32; but for the polar iteration, and that is in the compute dtype unless
    that is float16, or the processor has no units for it: float32 then, of which every proof is, too.
    """
    return "float32" if compute == "float16" and op in OPTIMIZER_OPS else compute


def runs_in(op: str, implementation: str, dtype: str) -> bool:
    """Whether this implementation may serve a run of this compute dtype."""
    if dtype == "float16" and op in _FLOAT16:
        return implementation in (REFERENCE, _FLOAT16[op][0])
    return dtype == _ONLY_IN.get(implementation, dtype)


def provable(op: str, device_kind: str, interpreted: bool = False) -> tuple[str, ...]:
    """The op's implementations that can run on this kind of device and are not the reference.

    Args:
        interpreted: whether Triton's interpreter is on (TRITON_INTERPRET=1).
    """

    def runs(name: str) -> bool:
        if device_kind == "mps" and name in NOT_ON_MPS:
            return False
        return name not in CUDA_ONLY or device_kind == "cuda" or (name == "triton" and interpreted)

    return tuple(name for name in IMPLEMENTATIONS[op] if name != REFERENCE and runs(name))


def rows_per_chunk(vocab_size: int) -> int:
    """Largest power of two of rows whose logits fit `CHUNK_ELEMENTS`, at least `LEAST_CHUNK_ROWS`."""
    return max(1 << (max(CHUNK_ELEMENTS // vocab_size, 1).bit_length() - 1), LEAST_CHUNK_ROWS)
