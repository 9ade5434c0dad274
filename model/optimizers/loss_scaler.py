"""Dynamic loss scaling for float16: small gradients do not underflow, large ones do no harm.

The loss is multiplied by a scale before the backward pass and the gradients are divided by it after. Where
one of them is not finite, on any rank, the optimizer's step changes nothing and the scale halves; after so
many steps without one it doubles. All of it happens on the device: the host never waits to know. The method
is that of mixed precision training (arXiv 1710.03740, section 3.2), factors and defaults are
torch.amp.GradScaler's, which nanochat takes as they are (karpathy/nanochat, scripts/base_train.py, 1076f97).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

GROWTH, BACKOFF = 2.0, 0.5
# Below it a scale would make gradients smaller, which float16 needs least: what overflows then is no gradient
# that is merely large.
SMALLEST_SCALE = 1.0


class Skip(NamedTuple):
    """Whether this step is skipped, and how many were before it: tensors of no dimension on the device."""

    now: Tensor  # bool
    before: Tensor  # int64


class LossScaler:
    """The scale of one run.

    Args:
        params: whose gradients are scaled.
        initial: the first scale.
        growth_steps: steps in a row without an overflow after which the scale doubles.
        group: ranks that skip a step together, or None for one rank.

    Attributes:
        scale: float32, of no dimension.
        counts: good steps in a row since the scale last changed, steps skipped and steps seen in all: int64
            [3].
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        initial: float,
        growth_steps: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.params, self.growth_steps, self.group = list(params), growth_steps, group
        device = self.params[0].device
        self.scale = torch.full((), initial, dtype=torch.float32, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to take the gradients of."""
        return loss * self.scale

    @torch.no_grad()
    def unscale_(self) -> Skip:
        """Divide the gradients by the scale, then choose the next step's; between backward pass and step."""
        grads = [param.grad for param in self.params if param.grad is not None]
        torch._foreach_mul_(grads, self.scale.reciprocal())
        overflows = self._overflows(grads)
        before = self.counts[1].clone()
        self._update(overflows)
        return Skip(overflows, before)

    def _overflows(self, grads: list[Tensor]) -> Tensor:
        """Whether a gradient of any rank is not finite: bool, of no dimension."""
        largest = torch.stack(torch._foreach_norm(grads, float("inf")))  # one pass; NaN and infinity stay
        found = (~largest.isfinite()).any()
        if self.group is not None:
            anywhere = found.float()
            dist.all_reduce(anywhere, dist.ReduceOp.MAX, group=self.group)
            found = anywhere > 0.0
        return found

    def _update(self, overflows: Tensor) -> None:
        good = (self.counts[0] + 1).masked_fill(overflows, 0)
        is_due = good >= self.growth_steps
        grown = self.scale * GROWTH
        # A scale that fell below the least stays there: the run has ended, though nobody has looked yet.
        grows = is_due & grown.isfinite() & (self.scale >= SMALLEST_SCALE)
        self.scale.copy_(torch.where(overflows, self.scale * BACKOFF, torch.where(grows, grown, self.scale)))
        self.counts[0] = good.masked_fill(is_due, 0)
        self.counts[1] += overflows
        self.counts[2] += 1

    def is_exhausted(self) -> bool:
        """Whether the scale fell below the least there is; the host waits for the device."""
        return bool(self.scale < SMALLEST_SCALE)


@contextmanager
def unchanged_if(skip: Skip | None, tensors: list[Tensor]) -> Iterator[None]:
    """What the block does to these tensors is undone where the step is skipped, bit for bit."""
    kept = [] if skip is None else [tensor.clone() for tensor in tensors]
    yield
    if skip is not None:
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(torch.where(skip.now, before, tensor))
