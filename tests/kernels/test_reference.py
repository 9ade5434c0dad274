"""The references say what they claim: each against the definition of its op, written out."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import reference
from tests.kernels.bounds import largest


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_cross_entropy_is_minus_the_log_of_the_targets_share(softcap: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    targets = [3, -1, 0, 6, -1]
    losses = []
    for h, target in zip(hidden.tolist(), targets, strict=True):
        logits = [sum(a * b for a, b in zip(h, row, strict=True)) for row in weight.tolist()]
        z = [softcap * math.tanh(x / softcap) if softcap else x for x in logits]
        share = [math.exp(x) / sum(math.exp(y) for y in z) for x in z]
        losses.append(-math.log(share[target]) if target >= 0 else 0.0)
    for reduction, expected in (("none", losses), ("sum", sum(losses)), ("mean", sum(losses) / 3)):
        actual = reference.linear_cross_entropy(hidden, weight, torch.tensor(targets), softcap, reduction)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_attention_mixes_the_values_a_query_may_see() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 5, 4, 2, dtype=torch.float64)
    k, v = torch.randn(2, 1, 5, 2, 2, dtype=torch.float64)
    actual = reference.sliding_window_attention(q, k, v, 2)
    for t in range(5):
        for head in range(4):
            seen = range(max(0, t - 2), t + 1)
            weights = [math.exp(float(q[0, t, head] @ k[0, s, head // 2]) / math.sqrt(2)) for s in seen]
            expected = sum(w * v[0, s, head // 2] for w, s in zip(weights, seen, strict=True)) / sum(weights)
            torch.testing.assert_close(actual[0, t, head], expected)


@pytest.mark.parametrize("shape", [(4, 4), (3, 12), (12, 3), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_polar_express_is_a_polynomial_of_the_singular_values(shape: tuple[int, int], steps: int) -> None:
    torch.manual_seed(0)
    G = torch.randn(2, *shape, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    s = s / (1.01 * s.square().sum(-1, keepdim=True).sqrt() + 1e-6)
    for a, b, c in reference.POLAR_EXPRESS_COEFFICIENTS[:steps]:
        s = a * s + b * s**3 + c * s**5
    assert largest(reference.polar_express(G, steps) - U * s[..., None, :] @ Vh) < 1e-12
