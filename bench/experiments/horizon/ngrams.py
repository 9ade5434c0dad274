"""Conditional entropies of the next token, from counts: bounds on both sides. Imports no torch.

H_n is the entropy of a token given the n before it. The plug-in estimate is below it, the more so the fewer
of the longer n-grams were seen twice; the loss of an n-gram model on held-out text is above it. Where the two
are far apart, counts do not tell H_n.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bench.experiments.horizon.pairs import (
    BLOCK,
    Counting,
    Floats,
    Ints,
    Tokens,
    blocks,
    counted,
    merged,
    runs,
)

Keys = npt.NDArray[np.uint64]
MAX_GAP = 0.10  # bounds further apart than this, relative, are called undersampled
MAX_POSITIONS = 1 << 26  # of training text; 268 MB of English at 4 bytes a token
MAX_HELD_OUT = 500_000


class CountedEntropy(msgspec.Struct, frozen=True, kw_only=True):
    """Estimates of H_n in nats a token."""

    context: int
    plug_in: float  # a lower bound in expectation
    miller_madow: float  # with the first-order correction, still low where most n-grams are single
    held_out: float  # an upper bound
    missing_mass: float  # share of n-grams seen once: Good and Turing's chance that the next is new
    num_windows: int
    is_undersampled: bool


class Table(NamedTuple):
    """The (context, token) keys of one order, rising; a key is the context's hash with the token below it."""

    context: int
    token_bits: int
    keys: Keys
    counts: Ints
    contexts: Keys  # distinct, rising
    starts: Ints  # [contexts], where their keys start

    @property
    def context_counts(self) -> Ints:
        """How often each context occurs."""
        return np.asarray(np.add.reduceat(self.counts, self.starts))

    @property
    def num_followers(self) -> Ints:
        """How many distinct tokens follow each context."""
        return np.diff(np.append(self.starts, self.keys.size))


def keys_between(
    tokens: Tokens, bos_id: int, context: int, bits: int, start: int, stop: int, longest: int | None = None
) -> Keys:
    """Keys of the windows of `context` tokens and the next, within a document, that begin in [start, stop).

    Args:
        longest: windows are those for which so long a context is there too, so that all orders score one set.
    """
    reach = context if longest is None else longest
    seen = np.asarray(tokens[start : stop + reach])
    if seen.size <= reach:
        return np.zeros(0, np.uint64)
    size = seen.size - reach
    breaks = np.cumsum(seen == bos_id, dtype=np.int32)
    whole = (breaks[reach:] == breaks[:size]) & (seen[:size] != bos_id)
    hashed = np.zeros(int(whole.sum()), np.uint64)
    for back in range(1, context + 1):  # a sum of products by odd numbers, whose high bits mix best
        taken = seen[reach - back : reach - back + size][whole].astype(np.uint64)
        hashed += (taken + np.uint64(1)) * _multiplier(back)
    mask = np.uint64((1 << bits) - 1)
    return np.asarray((_mixed(hashed) & ~mask) | seen[reach:][whole].astype(np.uint64))


def _multiplier(back: int) -> np.uint64:
    return np.uint64((0x9E3779B97F4A7C15 * (2 * back + 1) ** 5 + 0x632BE59BD9B4E019 * back) % 2**64 | 1)


def _mixed(values: Keys) -> Keys:
    """Steele, Lea and Flood's finaliser (SplitMix64, 2014): equal inputs only are likely to be equal."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def table(tokens: Tokens, bos_id: int, vocab_size: int, context: int, block: int = BLOCK) -> Table:
    """The counts of one order over a split."""
    bits = max(vocab_size - 1, 1).bit_length()
    found: Counting = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
    for start, stop in blocks(tokens.size, block):
        found = merged(found, counted(keys_between(tokens, bos_id, context, bits, start, stop)))
    above = found[0] >> np.uint64(bits)
    starts = runs(above)
    return Table(context, bits, found[0], found[1], above[starts], starts)


def plug_in(counts: Table) -> tuple[float, float]:
    """(the plug-in estimate, Miller and Madow's), nats."""
    num = int(counts.counts.sum())
    of_contexts = counts.context_counts.astype(np.float64)
    of_keys = counts.counts.astype(np.float64)
    value = float((of_contexts @ np.log(of_contexts) - of_keys @ np.log(of_keys)) / num)
    return value, value + (of_keys.size - of_contexts.size) / (2.0 * num)


def discounted(counts: Table, keys: Keys, shorter: Floats) -> Floats:
    """Probabilities of held-out keys: absolute discounting, interpolated with those of the shorter context.

    The discount is n1 / (n1 + 2 n2) of the n-grams seen once and twice (Ney, Essen and Kneser 1994).
    """
    once, twice = (int(np.count_nonzero(counts.counts == times)) for times in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.0
    seen = np.minimum(np.searchsorted(counts.keys, keys), counts.keys.size - 1)
    times = np.where(counts.keys[seen] == keys, counts.counts[seen], 0)
    above = keys >> np.uint64(counts.token_bits)
    place = np.minimum(np.searchsorted(counts.contexts, above), counts.contexts.size - 1)
    of_context, followers = counts.context_counts[place], counts.num_followers[place]
    mixed = (np.maximum(times - discount, 0.0) + discount * followers * shorter) / of_context
    return np.asarray(np.where(counts.contexts[place] == above, mixed, shorter))


class Counted(NamedTuple):
    """Entropies of orders 0, 1, ... and the held-out losses of each in blocks, for resampling."""

    entropies: list[CountedEntropy]
    losses: Floats  # [blocks, orders], mean nats


def entropies(
    train: Tokens, held_out: Tokens, bos_id: int, vocab_size: int, longest: int, num_blocks: int
) -> Counted:
    """H_0 to H_longest, from the first `MAX_POSITIONS` tokens, scored on the first `MAX_HELD_OUT`."""
    train, held_out = train[:MAX_POSITIONS], held_out[:MAX_HELD_OUT]
    bits = max(vocab_size - 1, 1).bit_length()
    found, losses, shorter = [], [], None
    for context in range(longest + 1):
        counts = table(train, bos_id, vocab_size, context)
        keys = keys_between(held_out, bos_id, context, bits, 0, held_out.size, longest)
        if not counts.keys.size or keys.size < num_blocks:
            break
        if shorter is None:
            shorter = np.full(keys.size, 1.0 / vocab_size)
        shorter = discounted(counts, keys, shorter)
        losses.append(-np.log(shorter))
        found.append(_entropy(counts, float(losses[-1].mean())))
    if not losses:
        return Counted([], np.zeros((0, 0)))
    parts = np.array_split(np.stack(losses), num_blocks, axis=1)
    return Counted(found, np.array([part.mean(axis=1) for part in parts]))


def _entropy(counts: Table, held_out: float) -> CountedEntropy:
    low, corrected = plug_in(counts)
    num = int(counts.counts.sum())
    return CountedEntropy(
        context=counts.context,
        plug_in=low,
        miller_madow=corrected,
        held_out=held_out,
        missing_mass=float(np.count_nonzero(counts.counts == 1)) / num,
        num_windows=num,
        is_undersampled=held_out - low > MAX_GAP * held_out,
    )
