"""The layer everything is made of: a linear map with float32 masters, in fp8 where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import Kernels
from model.config import ModelConfig

# (x [..., in_features], weight [out_features, in_features]) -> [..., out_features] in the dtype of x.
Product = Callable[[Tensor, Tensor], Tensor]


def fp8_product(config: ModelConfig, kernels: Kernels, in_features: int, out_features: int) -> Product | None:
    """The fp8 product for a matrix of this shape, or None where it stays in the compute dtype."""
    if not config.in_fp8(in_features, out_features):
        return None
    return partial(kernels.fp8_linear, rowwise=config.fp8 == "rowwise")


class Linear(nn.Module):
    """`x @ weight.T` in the dtype of x; the weight is a float32 master, cast at use. No bias.

    Args:
        training_product: what multiplies where gradients are recorded; evaluation is never in fp8.
    """

    def __init__(self, in_features: int, out_features: int, training_product: Product | None = None) -> None:
        super().__init__()
        self.training_product = training_product
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.training_product is not None and torch.is_grad_enabled():
            return self.training_product(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))
