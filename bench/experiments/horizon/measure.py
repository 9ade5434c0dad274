"""A text's two decays, measured: correlations over lags, entropies over contexts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from bench.errors import DataError
from bench.experiments.horizon.covariance import (
    block_sums,
    covariance,
    noise_bound,
    resampled_values,
    top_singular,
)
from bench.experiments.horizon.exponent import Exponent, exponent
from bench.experiments.horizon.ngrams import CountedEntropy, entropies
from bench.experiments.horizon.pairs import Floats, Tokens, count_pairs, count_shuffled
from bench.experiments.horizon.power_law import (
    LEAST_POINTS,
    PowerLaw,
    best_floor,
    block_weights,
    draws_of,
    fit,
    interval_of,
    windows,
)

# Even in the logarithm over 1 to 32, the range and number that the paper took on WikiText.
LAGS = (1, 2, 4, 8, 16, 32)
ABOVE_FLOOR = 2.0  # times the measured floor: below it a top singular value may be chance
NUM_BLOCKS = 32
LONGEST_CONTEXT = 5  # of the counts
COUNTED_WINDOW = (1.0, 3.0)  # contexts; the paper's on WikiText, its first three points
MODEL_WINDOW = (1.0, 16.0)  # the paper's on TinyStories
LAG_CUTS = ((1, 8), (2, 16), (4, 32), (8, 128))
CONTEXT_CUTS = ((1, 3), (1, 4), (1, 8), (1, 16), (4, 32), (8, 64))
SEED = 0  # of the floor's shuffle and of the resampling: equal text gives equal figures


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """The covariance at one lag."""

    lag: int
    top_singular: float
    num_pairs: int
    num_distinct: int
    is_above_floor: bool
    heaviest: tuple[str, str]  # the token of most weight in either vector: markup shows here


class Correlations(msgspec.Struct, frozen=True, kw_only=True):
    """The decay over lags: `law` is over all lags above the floor, None below three of them."""

    lags: list[Lag]
    floor: float  # top singular value of the covariance of shuffled tokens
    floor_bound: float  # matrix Bernstein's
    law: PowerLaw | None
    windows: tuple[PowerLaw, ...]


class Entropies(msgspec.Struct, frozen=True, kw_only=True):
    """The decay over contexts; `nats` are those fitted, less `entropy_rate`, and upper bounds of H_n."""

    source: Literal["checkpoint", "counts"]
    contexts: list[int]
    nats: list[float]
    entropy_rate: float  # H_infinity, assumed; 0 as in the paper's own collapse of curves
    law: PowerLaw | None
    windows: tuple[PowerLaw, ...]
    with_fitted_rate: tuple[float, PowerLaw] | None  # H_infinity that makes the window straightest
    counted: list[CountedEntropy]
    law_of_plug_in: PowerLaw | None  # of the lower bounds: too steep as the other is too flat
    says: list[str]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured of one text by one tokenizer."""

    dataset: str
    corpus_sha256: str
    tokenizer_sha256: str
    vocab_size: int
    num_tokens: int
    text_bytes: int
    correlations: Correlations
    entropies: Entropies
    exponent: Exponent | None


class Losses(NamedTuple):
    """A trained model's mean losses with 0, 1, ... tokens of context, in blocks; [blocks, contexts] nats."""

    blocks: Floats
    step: int


def correlations(
    tokens: Tokens,
    bos_id: int,
    vocab_size: int,
    lags: Sequence[int],
    word: Callable[[int], str],
    tell: Callable[[str], None],
) -> tuple[Correlations, Floats]:
    """The decay of the top singular value, and its exponent over resampled text.

    Args:
        word: a token as text.
        tell: hears what is being done.

    Raises:
        DataError: the text has no pair of tokens so far apart.
    """
    chance = count_shuffled(tokens, bos_id, vocab_size, SEED)
    if not chance.num_pairs:
        raise DataError("no document has two tokens", "add text")
    floor = top_singular(covariance(chance)).value
    bound = noise_bound(chance.first, chance.num_pairs)
    edges = [round(tokens.size * k / NUM_BLOCKS) for k in range(NUM_BLOCKS + 1)]
    weights = block_weights(NUM_BLOCKS, SEED)
    found, drawn = [], []
    for lag in lags:
        tell(f"lag {lag}")
        pairs = count_pairs(tokens, bos_id, vocab_size, lag)
        if not pairs.num_pairs:
            raise DataError(f"no document has tokens {lag} apart", "choose smaller lags")
        top = top_singular(covariance(pairs))
        found.append(
            Lag(
                lag=lag,
                top_singular=top.value,
                num_pairs=pairs.num_pairs,
                num_distinct=pairs.columns.size,
                is_above_floor=top.value > ABOVE_FLOOR * floor,
                heaviest=(word(_heaviest(top.left)), word(_heaviest(top.right))),
            )
        )
        drawn.append(resampled_values(block_sums(tokens, bos_id, lag, edges, top), weights))
    law, draws = _law_over(found, np.array(drawn).T)
    seen = [each for each in found if each.is_above_floor]
    cuts = windows([each.lag for each in seen], [each.top_singular for each in seen], LAG_CUTS)
    return Correlations(lags=found, floor=floor, floor_bound=bound, law=law, windows=cuts), draws


def _heaviest(vector: Floats) -> int:
    return int(np.argmax(np.abs(vector)))


def _law_over(found: list[Lag], drawn: Floats) -> tuple[PowerLaw | None, Floats]:
    kept = [i for i, each in enumerate(found) if each.is_above_floor]
    if len(kept) < LEAST_POINTS:
        return None, np.zeros(0)
    x = [found[i].lag for i in kept]
    draws = draws_of(x, drawn[:, kept], SEED + 1)
    law = fit(x, [found[i].top_singular for i in kept])
    return msgspec.structs.replace(law, interval=interval_of(draws)), draws


def entropy_decay(
    train: Tokens,
    held_out: Tokens,
    bos_id: int,
    vocab_size: int,
    losses: Losses | None,
    entropy_rate: float,
) -> tuple[Entropies, Floats]:
    """The decay of the entropies, from a model's losses where there are any, else from counts."""
    counted = entropies(train, held_out, bos_id, vocab_size, LONGEST_CONTEXT, NUM_BLOCKS)
    blocks = counted.losses if losses is None else losses.blocks
    low, high = COUNTED_WINDOW if losses is None else MODEL_WINDOW
    curve = blocks.mean(axis=0) - entropy_rate if blocks.size else np.zeros(0)
    inside = [n for n in range(1, curve.size) if low <= n <= high]
    draws, law = np.zeros(0), None
    if len(inside) >= LEAST_POINTS and np.all(curve[inside] > 0.0):
        weights = block_weights(len(blocks), SEED + 2) / len(blocks)
        draws = draws_of(inside, (weights @ blocks)[:, inside] - entropy_rate, SEED + 3)
        law = msgspec.structs.replace(fit(inside, curve[inside].tolist()), interval=interval_of(draws))
    contexts = list(range(1, curve.size))
    lower = [max(each.plug_in - entropy_rate, 0.0) for each in counted.entropies]
    plugs = windows(range(len(lower)), lower, (COUNTED_WINDOW,))
    made = Entropies(
        source="counts" if losses is None else "checkpoint",
        contexts=contexts,
        nats=curve[1:].tolist(),
        entropy_rate=entropy_rate,
        law=law,
        windows=windows(contexts, curve[1:].tolist(), CONTEXT_CUTS),
        with_fitted_rate=best_floor(inside, curve[inside].tolist()) if law is not None else None,
        counted=counted.entropies,
        law_of_plug_in=plugs[0] if plugs else None,
        says=[*_caveats(counted.entropies, losses), *_undertrained(counted.entropies, losses)],
    )
    return made, draws


def _caveats(counted: list[CountedEntropy], losses: Losses | None) -> list[str]:
    thin = [each.context for each in counted if each.is_undersampled]
    said = []
    if thin:
        said.append(
            f"counts undersample from n = {thin[0]} on: the bounds of H_{thin[0]} are "
            f"{counted[thin[0]].plug_in:.2f} and {counted[thin[0]].held_out:.2f} nats"
        )
    if losses is None:
        said.append(
            "gamma is from counts, for want of a checkpoint: where they undersample it is too small, "
            "for held-out losses bound H_n from above, as the lower bounds' is too large"
        )
    else:
        said.append(
            f"gamma is from a model's loss by position at step {losses.step}, which bounds H_n from above"
        )
    return said


def _undertrained(counted: list[CountedEntropy], losses: Losses | None) -> list[str]:
    """What to say of a model that knows less of the next token than counting does."""
    if losses is None:
        return []
    means = losses.blocks.mean(axis=0)
    for each in counted[1 : means.size]:
        if means[each.context] > each.held_out:
            return [
                f"the model is undertrained: {means[each.context]:.2f} nats after {each.context} tokens, "
                f"where counting has {each.held_out:.2f}; its gamma is not the text's"
            ]
    return []


def _bounded(found: Exponent | None, entropy: Entropies) -> Exponent | None:
    """The exponent, with how far apart counts alone leave it."""
    other = entropy.law_of_plug_in
    if found is None or other is None or entropy.source != "counts":
        return found
    ends = sorted((found.value, other.exponent / (2.0 * found.beta)))
    said = f"counts alone place alpha_D between {ends[0]:.3f} and {ends[1]:.3f}"
    return msgspec.structs.replace(found, says=[*found.says, said])


def measure(
    dataset: str,
    hashes: tuple[str, str],
    train: Tokens,
    held_out: Tokens,
    bos_id: int,
    vocab_size: int,
    text_bytes: int,
    *,
    lags: Sequence[int] = LAGS,
    losses: Losses | None = None,
    entropy_rate: float = 0.0,
    word: Callable[[int], str],
    tell: Callable[[str], None],
) -> Statistics:
    """All statistics of a text.

    Args:
        hashes: of the corpus and of the tokenizer.
        word: a token as text.
        tell: hears what is being done.
    """
    decay, beta_draws = correlations(train, bos_id, vocab_size, lags, word, tell)
    tell("n-gram entropies")
    entropy, gamma_draws = entropy_decay(train, held_out, bos_id, vocab_size, losses, entropy_rate)
    found = None
    if decay.law is not None and entropy.law is not None:
        found = _bounded(exponent(decay.law, entropy.law, beta_draws, gamma_draws), entropy)
    return Statistics(
        dataset=dataset,
        corpus_sha256=hashes[0],
        tokenizer_sha256=hashes[1],
        vocab_size=vocab_size,
        num_tokens=train.size,
        text_bytes=text_bytes,
        correlations=decay,
        entropies=entropy,
        exponent=found,
    )
