"""The top singular value of the token covariance at a lag, its noise floor and its blocks. Imports no torch.

C(n) = P(x_t, x_{t+n}) - p(x_t) p(x_{t+n}), whose top singular value falls as n^-beta (arXiv 2602.07488,
eq. 7). C(n) is never formed: only its products with vectors, from the pairs counted.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from bench.experiments.horizon.pairs import Floats, Pairs, Tokens, pairs_between

MAX_STEPS = 96
TOLERANCE = 1e-9


class Singular(NamedTuple):
    """The top singular value and its vectors."""

    value: float
    left: Floats
    right: Floats


class Operator(NamedTuple):
    """A covariance by its products: sparse shares less the product of the marginals."""

    pairs: Pairs
    first: Floats
    second: Floats

    def times(self, right: Floats) -> Floats:
        """C right."""
        products = self.pairs.counts * right[self.pairs.columns]
        found = -self.first * float(self.second @ right)
        found[self.pairs.rows] += np.add.reduceat(products, self.pairs.starts) / self.pairs.num_pairs
        return found

    def transposed(self, left: Floats) -> Floats:
        """C' left."""
        lengths = np.diff(np.append(self.pairs.starts, self.pairs.columns.size))
        weights = self.pairs.counts * np.repeat(left[self.pairs.rows], lengths)
        sums = np.bincount(self.pairs.columns, weights, self.pairs.vocab_size)
        return sums / self.pairs.num_pairs - self.second * float(self.first @ left)


def covariance(pairs: Pairs) -> Operator:
    """The covariance of counted pairs, centred by their own marginals."""
    return Operator(pairs, pairs.first, pairs.second)


def top_singular(operator: Operator, seed: int = 0) -> Singular:
    """By Golub and Kahan's bidiagonalisation with full reorthogonalisation.

    Stops when the value no longer moves; the largest value of a Krylov space comes first, within few steps.
    """
    size = operator.pairs.vocab_size
    right = _unit(np.random.default_rng(seed).standard_normal(size))
    lefts, rights = np.zeros((0, size)), right[None]
    diagonal: list[float] = []
    above: list[float] = []
    value = 0.0
    while True:
        left = _against(operator.times(rights[-1]), lefts)
        diagonal.append(float(np.linalg.norm(left)))
        if diagonal[-1] == 0.0:  # nothing is left: the covariance has a smaller rank
            left = np.zeros(size)
        lefts = np.vstack((lefts, _unit(left)))
        inner = np.diag(diagonal) + np.diag(above, 1)
        u, values, v = np.linalg.svd(inner)
        is_settled = abs(float(values[0]) - value) <= TOLERANCE * float(values[0])
        value = float(values[0])
        right = _against(operator.transposed(lefts[-1]), rights)
        above.append(float(np.linalg.norm(right)))
        if is_settled or above[-1] <= 1e-15 or len(diagonal) == min(MAX_STEPS, size):
            return Singular(value, u[:, 0] @ lefts, v[0] @ rights)
        rights = np.vstack((rights, _unit(right)))


def _unit(vector: Floats) -> Floats:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


def _against(vector: Floats, basis: Floats) -> Floats:
    """The vector less its part in the basis, taken away twice, for once leaves rounding behind."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def noise_bound(first: Floats, num_pairs: int) -> float:
    """The matrix Bernstein bound on what sampling of so many independent pairs adds to any singular value.

    E |C^ - C| <= sqrt(2 s2 log(2 V) / P), s2 the largest marginal (Tropp 2015, theorem 1.6.2, without its
    term in 1/P): the paper's appendix B has the same order, sqrt(s2 log V / P).
    """
    spread = 2.0 * float(first.max()) * math.log(2.0 * np.count_nonzero(first))
    return math.sqrt(spread / num_pairs)


def block_sums(tokens: Tokens, bos_id: int, lag: int, edges: list[int], top: Singular) -> Floats:
    """Of each block of positions: pairs, and sums of u(x) v(y), u(x) and v(y); [blocks, 4].

    The top singular value is the covariance of u(x_t) and v(x_{t+n}); over resampled blocks it is so to first
    order, for the vectors' own change adds a term of second order.
    """
    rows = []
    for start, stop in itertools.pairwise(edges):
        first, second = pairs_between(tokens, bos_id, lag, start, stop)
        u, v = top.left[first], top.right[second]
        rows.append((float(u.size), float(u @ v), float(u.sum()), float(v.sum())))
    return np.array(rows)


def resampled_values(sums: Floats, weights: Floats) -> Floats:
    """The top singular value for each row of `weights`, [draws, blocks] of how often a block is drawn."""
    totals = weights @ sums
    num, products, firsts, seconds = totals.T
    num = np.maximum(num, 1.0)  # a draw may hold blocks without pairs only
    return np.asarray(products / num - firsts * seconds / num**2)
