"""The bound that an implementation is held to: hardly worse than eager in its dtype, against float64."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(x: Tensor) -> float:
    """max |x|, 0 of nothing, NaN and infinity kept."""
    return x.detach().double().abs().max().item() if x.numel() else 0.0


def error_ratio(
    actual: Tensor,
    eager: Tensor,
    oracle: Tensor,
    *,
    factor: float = 2.0,
    ulps: float = 1.0,
    scale: float = 0.0,
) -> float:
    """|actual - oracle| as a share of what is allowed, factor |eager - oracle| + ulps u scale; maxima.

    Args:
        actual: what the implementation gave.
        eager: what the reference gives in the same dtype: what the implementation replaces.
        oracle: what the reference gives in float64 from the same inputs.
        factor: how much worse than eager is allowed (2 to 3: FlashAttention's and QuACK's tests).
        ulps: multiples of the dtype's epsilon allowed whatever eager does, so that an eager result that
            happens to be exact is not asked of the implementation.
        scale: magnitude of what was rounded on the way; the largest number of the oracle at least.
    """
    assert actual.dtype == eager.dtype, f"dtype {actual.dtype}, the reference gives {eager.dtype}"
    assert actual.shape == oracle.shape, (
        f"shape {list(actual.shape)}, the reference gives {list(oracle.shape)}"
    )
    oracle = oracle.double()
    error, eager_error = largest(actual.double() - oracle), largest(eager.double() - oracle)
    allowed = factor * eager_error + ulps * torch.finfo(actual.dtype).eps * max(scale, largest(oracle))
    if error == 0.0:
        return 0.0
    return error / allowed if allowed else float("inf")
