"""`bench arch`: every plain shape of a given size, by how its parameters split. Imports no torch.

The plain transformer of the count: embedding V d, head V d, and 12 d^2 a layer (attention 4, MLP 8), which is
nanochat's without value embeddings, smear and backout, but for its 2 scalars a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench.errors import RecipeError
from bench.spec.model_table import Model
from bench.spec.plan import model_config
from bench.spec.recipe import Horizon, Recipe
from model.flops import flops_per_token

MATRICES_A_LAYER = 12  # times width squared
TOLERANCE = 0.015
BALANCE = 0.01  # shares that differ by at most this are balanced
# Sizes of vocabulary: whole multiples of 2^13, up to nanochat's largest.
VOCAB_STEP = 2**13
MAX_VOCAB = 2**16
TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022 (arXiv 2203.15556)
CHARS_A_TOKEN = 4.8  # nanochat's tokenizer on its own text
CHARS_A_SHARD = 250_000_000
BYTES_A_SHARD = 100_000_000  # compressed
SEQUENCE = 2048


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Data for compute-optimal training."""

    tokens: int
    characters: int
    shards: int
    disk_bytes: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One model's shape, its parameters and what they cost."""

    depth: int
    width: int
    heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    wte: int
    layers: int  # parameters of all layers
    lm_head: int
    total: int
    a_layer: int
    flops_a_token: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of embedding, layers and head; of a tied table and layers where they are one."""
        parts = (self.lm_head, self.layers) if self.is_tied else (self.wte, self.layers, self.lm_head)
        return tuple(part / self.total for part in parts)

    @property
    def imbalance(self) -> float:
        """Largest share less the smallest; 0 is an exact split."""
        return max(self.shares) - min(self.shares)

    @property
    def total_if_tied(self) -> int:
        """Parameters with one table for both ends."""
        return self.lm_head + self.layers

    @property
    def needs(self) -> Needs:
        """What compute-optimal training takes."""
        tokens = TOKENS_A_PARAMETER * self.total
        characters = round(tokens * CHARS_A_TOKEN)
        shards = -(-characters // CHARS_A_SHARD)
        return Needs(tokens=tokens, characters=characters, shards=shards, disk_bytes=shards * BYTES_A_SHARD)


def shape(depth: int, width: int, vocab_size: int, head_dim: int, is_tied: bool = False) -> Shape:
    """The shape of these numbers, counted."""
    table, a_layer = vocab_size * width, MATRICES_A_LAYER * width * width
    counted = Shape(
        depth=depth,
        width=width,
        heads=width // head_dim,
        head_dim=head_dim,
        vocab_size=vocab_size,
        is_tied=is_tied,
        wte=0 if is_tied else table,
        layers=depth * a_layer,
        lm_head=table,
        total=(1 if is_tied else 2) * table + depth * a_layer,
        a_layer=a_layer,
        flops_a_token=0,
    )
    return msgspec.structs.replace(counted, flops_a_token=_flops(counted))


def _flops(counted: Shape) -> int:
    """Training FLOPs a token at full attention over `SEQUENCE` tokens, by the plan's own count."""
    model = Model(
        depth=counted.depth,
        aspect_ratio=aspect_ratio(counted),
        head_dim=counted.head_dim,
        vocab_size=counted.vocab_size,
        sequence_length=SEQUENCE,
        window_pattern="L",
        value_embeddings="none",
        smear=False,
        backout=False,
    )
    return flops_per_token(model_config(Recipe(model=model)))


def aspect_ratio(found: Shape) -> int:
    """The whole number of width a layer that the recipe's rounding turns into this width."""
    least = (found.width - found.head_dim) // found.depth + 1
    if least * found.depth > found.width:
        raise RecipeError(
            f"no whole aspect ratio makes width {found.width} at depth {found.depth}", "take a wider head_dim"
        )
    return max(found.width // found.depth, 1)


def enumerate_shapes(
    params: int,
    head_dim: int,
    *,
    is_tied: bool = False,
    tolerance: float = TOLERANCE,
    vocab_sizes: Sequence[int] = tuple(range(VOCAB_STEP, MAX_VOCAB + 1, VOCAB_STEP)),
) -> list[Shape]:
    """Every shape within the tolerance, and no other: width and vocabulary bound the depth on both sides.

    Args:
        tolerance: of the parameters, relative.
    """
    low, high = params * (1 - tolerance), params * (1 + tolerance)
    tables, found = (1 if is_tied else 2), []
    for vocab_size in vocab_sizes:
        width = head_dim
        while tables * vocab_size * width + MATRICES_A_LAYER * width * width <= high:
            a_layer, rest = MATRICES_A_LAYER * width * width, tables * vocab_size * width
            least = max(-int(-(low - rest) // a_layer), 1)
            for depth in range(least, int((high - rest) // a_layer) + 1):
                if _is_expressible(depth, width, head_dim):
                    found.append(shape(depth, width, vocab_size, head_dim, is_tied))
            width += head_dim
    return found


def _is_expressible(depth: int, width: int, head_dim: int) -> bool:
    """Whether a recipe can say it: depth at most 128, and a whole aspect ratio that rounds to the width."""
    if depth > 128 or width // depth < 1:
        return False
    return -(-depth * (width // depth) // head_dim) * head_dim == width


def ranked(shapes: Sequence[Shape], params: int, *, by_throughput: bool = False) -> list[Shape]:
    """Most balanced first, or cheapest token first; nearness to the wanted size breaks ties."""

    def place(one: Shape) -> tuple[float, ...]:
        ends = (round(one.imbalance, 6), float(one.flops_a_token))
        return (*(reversed(ends) if by_throughput else ends), abs(one.total - params), float(one.depth))

    return sorted(shapes, key=place)


def balanced(shapes: Sequence[Shape]) -> list[Shape]:
    """Those whose shares differ by at most `BALANCE`."""
    return [one for one in shapes if one.imbalance <= BALANCE]


def recipe_text(found: Shape) -> str:
    """The shape as a recipe: nanochat's Run 6 at this size, trained as long as is compute-optimal."""
    tables = "one table for both ends" if found.is_tied else "untied"
    shares = " / ".join(f"{share:.2%}" for share in found.shares)
    return f'''title = "{found.total / 1e6:.1f} M parameters: {found.depth} layers of {found.width}, {tables}"
notes = """
Shares of {"table and layers" if found.is_tied else "embedding, layers and head"}: {shares}.
Value embeddings, smear and backout are off, for the count is of the plain transformer.
"""
base = "run6-fixed"
track = "tiny-38m"

[model]
depth = {found.depth}
aspect_ratio = {aspect_ratio(found)}
head_dim = {found.head_dim}
vocab_size = {found.vocab_size}
window_pattern = "L"
value_embeddings = "none"
smear = false
backout = false
tied_embeddings = {str(found.is_tied).lower()}

[horizon]
tokens = {Horizon(tokens=found.needs.tokens).tokens}
'''


def shapes_text(shapes: Sequence[Shape], params: int, head_dim: int) -> str:
    """The shapes as a table, with relative speed and data needs."""
    heading = f"{len(shapes)} shapes of {params / 1e6:.4g} M parameters with heads of {head_dim}"
    columns = (
        "depth width heads   vocab   params    off  shares                   a layer  speed  tokens shards"
    )
    fastest = min((one.flops_a_token for one in shapes), default=1)
    lines = [heading, columns]
    for one in shapes:
        shares = " / ".join(f"{share:6.2%}" for share in one.shares)
        lines.append(
            f"{one.depth:>5} {one.width:>5} {one.heads:>5} {one.vocab_size:>7} {one.total / 1e6:>7.2f}M"
            f" {one.total / params - 1:>+6.2%}  {shares:<24} {one.a_layer / 1e3:>6.0f}K"
            f"  {fastest / one.flops_a_token:>4.0%} {one.needs.tokens / 1e6:>6.0f}M {one.needs.shards:>6}"
        )
    note = f"speed: tokens a FLOP at {SEQUENCE} tokens of full attention, of the table's cheapest"
    return "\n".join([*lines, note])
