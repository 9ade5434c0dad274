"""What the kernel benchmark feeds each op: inputs at a model's shapes, and the bytes and FLOPs it must spend.

Bytes count every tensor once a pass: inputs and upstream gradients read, outputs and gradients written, what
a backward needs read again. FLOPs count products alone, a multiply-add as two.

Shapes: B rows, T tokens a row, N = B*T, D width, F = 4*D, H heads, K head dim, V vocabulary, R rows of the
bigram table, W window, S stacked matrices of M x P. e is the size of an element of the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

WIDTH_A_LAYER = 64
HEAD_DIM = 128
MLP_EXPANSION = 4
BIGRAM_ROWS_A_TOKEN = 5  # rows of the bigram table for each token of the vocabulary
INT64_BYTES, FLOAT32_BYTES = 8, 4
SOFTCAP = 15.0
POLAR_STEPS = 5


class Shapes(NamedTuple):
    """A model of the house's proportions on a batch of B = `rows` rows."""

    name: str
    rows: int
    tokens: int
    depth: int
    vocab: int
    window: int
    width: int
    head_dim: int = HEAD_DIM


def shapes_of(name: str, rows: int, tokens: int, depth: int, vocab: int) -> Shapes:
    """Shapes at 64 channels a layer and heads of 128, the window a quarter of the row."""
    return Shapes(name, rows, tokens, depth, vocab, tokens // 4, WIDTH_A_LAYER * depth)


SHAPES = {
    "d4": shapes_of("d4", rows=16, tokens=512, depth=4, vocab=8192),
    "d6": shapes_of("d6", rows=2, tokens=2048, depth=6, vocab=32768),
    "d12": shapes_of("d12", rows=32, tokens=2048, depth=12, vocab=32768),
    "d24": shapes_of("d24", rows=32, tokens=2048, depth=24, vocab=32768),
}


class Case(NamedTuple):
    """One op at one shape.

    Leaves among the arguments want gradients; an op without leaves is a step, of which are compared what it
    returns and its arguments at `changed`.
    """

    op: str
    shape: str
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    bytes: int
    flops: int
    keywords: Mapping[str, Any] = MappingProxyType({})
    changed: tuple[int, ...] = ()


class Maker(NamedTuple):
    """Draws tensors on the device; `dtype` is the compute dtype."""

    shapes: Shapes
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normal numbers of this standard deviation."""
        values = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)
        return values.mul_(scale)

    def leaf(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """The same, wanting a gradient."""
        return self.normal(*shape, dtype=dtype, scale=scale).requires_grad_()

    def ids(self, *shape: int) -> Tensor:
        """Token ids, the small ones more often, as in text: cubes of uniform numbers."""
        uniform = torch.rand(shape, generator=self.generator, device=self.device)
        return (uniform.pow(3) * self.shapes.vocab).long()

    @property
    def element_bytes(self) -> int:
        """e."""
        return self.dtype.itemsize


def make_case(
    op: str, shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int, stacked: str = "long"
) -> Case:
    """The op's inputs at these shapes.

    Args:
        dtype: of activations and of the polar step; masters and moments are float32.
        stacked: which matrices the Muon ops get: "long" (the MLP's first) or "square" (attention's).
    """
    maker = Maker(shapes, device, dtype, torch.Generator(device).manual_seed(seed))
    if op in _STACKED:
        S, M = (shapes.depth, MLP_EXPANSION * shapes.width) if stacked == "long" else (4 * shapes.depth, 0)
        return _STACKED[op](maker, S, M or shapes.width, shapes.width)
    return _CASES[op](maker)


def _embedding(make: Maker) -> Case:
    B, T, V, D, e = (
        make.shapes.rows,
        make.shapes.tokens,
        make.shapes.vocab,
        make.shapes.width,
        make.element_bytes,
    )
    N = B * T
    # Forward: ids, the table's rows (each at most once from memory), output. Backward: ids, upstream, table.
    moved = 2 * N * INT64_BYTES + min(N, V) * D * FLOAT32_BYTES + 2 * N * D * e + V * D * FLOAT32_BYTES
    arguments = (make.leaf(V, D, dtype=torch.float32), make.ids(B, T), make.dtype)
    return Case("embedding", f"{V}x{D}, {N} tokens", make.dtype, arguments, moved, 0)


def _bigram_residual(make: Maker) -> Case:
    B, T, V, D, e = (
        make.shapes.rows,
        make.shapes.tokens,
        make.shapes.vocab,
        make.shapes.width,
        make.element_bytes,
    )
    N, R = B * T, BIGRAM_ROWS_A_TOKEN * V
    # Forward: x, table rows, output. Backward: upstream (it is x's gradient), table rows for the strength's
    # gradient, the table's gradient. Ids both ways.
    rows = 2 * min(N, R) * D * FLOAT32_BYTES
    moved = 3 * N * D * e + rows + R * D * FLOAT32_BYTES + 2 * N * INT64_BYTES
    strength = torch.tensor(0.1, device=make.device).requires_grad_()
    arguments = (make.leaf(B, T, D), make.leaf(R, D, dtype=torch.float32), make.ids(B, T), strength)
    return Case("bigram_residual", f"{R}x{D}, {N} tokens", make.dtype, arguments, moved, 0)


def _mix_rms_norm(make: Maker) -> Case:
    N, D = make.shapes.rows * make.shapes.tokens, make.shapes.width
    # Forward: two read, two written. Backward: both upstreams and both inputs read (z follows from them),
    # two gradients written.
    moved = 10 * N * D * make.element_bytes
    scales = [torch.tensor(value, device=make.device).requires_grad_() for value in (1.1, 0.2)]
    return Case("mix_rms_norm", f"{N}x{D}", make.dtype, (make.leaf(N, D), make.leaf(N, D), *scales), moved, 0)


def _rotary_qk_norm(make: Maker) -> Case:
    B, T, K = make.shapes.rows, make.shapes.tokens, make.shapes.head_dim
    H = make.shapes.width // K
    # q and k, each: forward read and written; backward upstream and input read, gradient written.
    moved = 2 * 5 * B * T * H * K * make.element_bytes
    angles = torch.arange(T)[:, None] * torch.logspace(0, -4, K // 2)
    tables = [
        table.view(1, T, 1, K // 2).to(make.device, make.dtype) for table in (angles.cos(), angles.sin())
    ]
    arguments = (make.leaf(B, T, H, K), make.leaf(B, T, H, K), *tables, 1.2)
    return Case("rotary_qk_norm", f"{B}x{T}x{H}x{K}", make.dtype, arguments, moved, 0)


def _attention(make: Maker) -> Case:
    B, T, K, W = make.shapes.rows, make.shapes.tokens, make.shapes.head_dim, make.shapes.window
    H = make.shapes.width // K
    pairs = sum(min(t, W) + 1 for t in range(T))  # (query, key) that see each other
    # Forward: q k^T and p v. Backward: the first again, and four for dv, dp, dq, dk: 7 products of 2 K FLOPs.
    flops = 14 * B * H * K * pairs
    # Forward: q, k, v, o. Backward: q, k, v, o and the upstream read, three written.
    moved = 12 * B * T * H * K * make.element_bytes
    arguments = (*(make.leaf(B, T, H, K) for _ in range(3)), W)
    return Case("attention", f"{B}x{T}x{H}x{K}, window {W}", make.dtype, arguments, moved, flops)


def _relu_squared_mlp(make: Maker) -> Case:
    N, D, e = make.shapes.rows * make.shapes.tokens, make.shapes.width, make.element_bytes
    F = MLP_EXPANSION * D
    # Two products forward, two gradients of each backward.
    flops = 12 * N * D * F
    # x and y; x, upstream and x's gradient; the hidden activations written and read; masters read both ways,
    # their gradients written.
    moved = 5 * N * D * e + 2 * N * F * e + 3 * 2 * D * F * FLOAT32_BYTES
    weights = [make.leaf(*shape, dtype=torch.float32, scale=D**-0.5) for shape in ((F, D), (D, F))]
    return Case("relu_squared_mlp", f"{N}x{D}x{F}", make.dtype, (make.leaf(N, D), *weights), moved, flops)


def _linear_cross_entropy(make: Maker) -> Case:
    N, D, V = make.shapes.rows * make.shapes.tokens, make.shapes.width, make.shapes.vocab
    # Logits, the hidden states' gradient, the head's gradient.
    flops = 6 * N * D * V
    # Hidden states and head read, their gradients written; the logits need never leave the chip.
    moved = 2 * N * D * make.element_bytes + 2 * V * D * FLOAT32_BYTES + N * INT64_BYTES
    head = make.leaf(V, D, dtype=torch.float32, scale=D**-0.5)
    arguments = (make.leaf(N, D), head, make.ids(N))
    keywords = {"softcap": SOFTCAP}
    return Case("linear_cross_entropy", f"{N}x{D}x{V}", make.dtype, arguments, moved, flops, keywords)


def _fp8_linear(make: Maker) -> Case:
    N, D, e = make.shapes.rows * make.shapes.tokens, make.shapes.width, make.element_bytes
    F = MLP_EXPANSION * D
    # Input, output, upstream and input's gradient; 1-byte codes written and read once each way in both
    # layouts are the algorithm's own, not counted. The master read, its gradient written.
    moved = 3 * N * D * e + 2 * N * F * e + 2 * D * F * FLOAT32_BYTES
    arguments = (make.leaf(N, D), make.leaf(F, D, dtype=torch.float32, scale=D**-0.5))
    return Case("fp8_linear", f"{N}x{D}x{F}", make.dtype, arguments, moved, 6 * N * D * F)


def _muon_direction(make: Maker, S: int, M: int, P: int) -> Case:
    # Gradients read, momentum read and written, in float32; the direction written in the polar step's dtype.
    moved = S * M * P * (3 * FLOAT32_BYTES + make.element_bytes)
    arguments = (
        make.normal(S, M, P, dtype=torch.float32),
        make.normal(S, M, P, dtype=torch.float32),
        0.95,
        make.dtype,
    )
    return Case("muon_direction", f"{S}x{M}x{P}", torch.float32, arguments, moved, 0, changed=(1,))


def _polar_express(make: Maker, S: int, M: int, P: int) -> Case:
    short, long = min(M, P), max(M, P)
    # A step: X X^T and A A, symmetric and so half a product each, and B X. The Gram form of a long matrix
    # needs fewer, and may pass 100 %.
    flops = POLAR_STEPS * S * (short**2 * long + short**3 + 2 * short**2 * long)
    moved = 2 * S * M * P * make.element_bytes
    return Case(
        "polar_express", f"{S}x{M}x{P}", make.dtype, (make.normal(S, M, P), POLAR_STEPS), moved, flops
    )


def _muon_update(make: Maker, S: int, M: int, P: int) -> Case:
    # Parameters read and written, directions read.
    moved = S * M * P * (2 * FLOAT32_BYTES + make.element_bytes)
    per_neuron = (S, M, 1) if M >= P else (S, 1, P)
    second_moment = make.normal(*per_neuron, dtype=torch.float32, scale=0.01).square()
    update = make.normal(S, M, P, scale=P**-0.5)
    arguments = (make.normal(S, M, P, dtype=torch.float32, scale=0.02), update, second_moment)
    keywords = {"lr": 0.02, "weight_decay": 0.1, "beta2": 0.9, "renormalise": True}
    shape = f"{S}x{M}x{P}"
    return Case("muon_update", shape, torch.float32, arguments, moved, 0, keywords, changed=(0, 2))


def _adamw(make: Maker) -> Case:
    V, D, num_tables = make.shapes.vocab, make.shapes.width, 2 + make.shapes.depth // 2
    # Parameter and both moments read and written, gradient read, float32: 28 bytes a parameter of the
    # embedding, the head and a value embedding in every other layer.
    moved = 7 * num_tables * V * D * FLOAT32_BYTES
    tables = [
        [make.normal(V, D, dtype=torch.float32, scale=scale) for _ in range(num_tables)]
        for scale in (0.1, 0.01, 0.01, 0.01)
    ]
    tables[3] = [table.square_() for table in tables[3]]
    keywords = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.01}
    arguments = (*tables, 10)
    shape = f"{num_tables}x{V}x{D}"
    return Case("adamw", shape, torch.float32, arguments, moved, 0, keywords, changed=(0, 2, 3))


_CASES: dict[str, Callable[[Maker], Case]] = {
    "embedding": _embedding,
    "bigram_residual": _bigram_residual,
    "mix_rms_norm": _mix_rms_norm,
    "rotary_qk_norm": _rotary_qk_norm,
    "attention": _attention,
    "relu_squared_mlp": _relu_squared_mlp,
    "linear_cross_entropy": _linear_cross_entropy,
    "fp8_linear": _fp8_linear,
    "adamw": _adamw,
}
_STACKED: dict[str, Callable[[Maker, int, int, int], Case]] = {
    "muon_direction": _muon_direction,
    "polar_express": _polar_express,
    "muon_update": _muon_update,
}
