"""The bound that an implementation is held to: hardly worse than eager in its dtype, against float64."""

from __future__ import annotations

from torch import Tensor, finfo


def largest(x: Tensor) -> float:
    """max |x|, 0 of nothing."""
    return x.detach().double().abs().max().item() if x.numel() else 0.0


def assert_close_as_eager(
    actual: Tensor, eager: Tensor, oracle: Tensor, *, factor: float, ulps: float = 1.0, scale: float = 0.0
) -> None:
    """max |actual - oracle| <= factor * max |eager - oracle| + ulps * epsilon of the dtype * scale.

    Args:
        factor: how much worse than eager is allowed (2 to 3: FlashAttention's and QuACK's tests).
        scale: magnitude of what was rounded on the way; the largest number of the oracle at least. The floor
            keeps an eager result that happens to be exact from being asked of the implementation.
    """
    assert actual.dtype == eager.dtype
    assert actual.shape == oracle.shape
    error, eager_error = largest(actual.double() - oracle), largest(eager.double() - oracle)
    floor = ulps * finfo(actual.dtype).eps * max(scale, largest(oracle))
    assert error <= factor * eager_error + floor, (error, eager_error, floor)
