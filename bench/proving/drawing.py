"""Tensors for properties: drawn by hypothesis, laid out as awkwardly as callers may, fenced by NaN.

Every tensor lies inside a larger storage filled with NaN (a sentinel for integers): a kernel that reads past
its argument shows it in the result, also in the interpreter, which checks no bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

SCALES = (1e-4, 1.0, 1e4)
# In float16 products of numbers of 1e4 overflow and of 1e-4 vanish, in the reference as in any other;
# what a run does about that is the loss scale's to do.
FLOAT16_SCALES = (0.1, 1.0)
LAYOUTS = ("contiguous", "padded", "transposed")
# Sizes at which masks and loops go wrong: 1, primes, powers of two and their neighbours.
SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65)
FENCE = 64  # elements on either side
INTEGER_FENCE = 2**30 + 7


def sizes(largest: int) -> st.SearchStrategy[int]:
    """Sizes up to `largest`, the awkward ones more often."""
    return st.sampled_from([size for size in SIZES if size <= largest]) | st.integers(1, largest)


def whole_rows(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """The width, or one near it at which a CPU's bf16 product stays within its rows.

    torch 2.13's products on AMX read past rows of other widths, and a NaN that follows gets in: of sums of 1
    to 199 terms, with up to 65 x 68 results, never those of a multiple of 4 up to 64, or of 32.
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return width
    step = 4 if width <= 64 else 32
    return -(-width // step) * step


def in_range(scale: float, dtype: torch.dtype) -> float:
    """The scale, or the nearest whose products float16 holds."""
    least, most = FLOAT16_SCALES
    return min(max(scale, least), most) if dtype == torch.float16 else scale


def scales_in(dtype: torch.dtype) -> tuple[float, ...]:
    """Scales of a wider tensor whose numbers are cast to this dtype."""
    return FLOAT16_SCALES if dtype == torch.float16 else SCALES


def draw_generator(data: Any) -> torch.Generator:
    """A generator with a drawn seed; numbers are drawn on the CPU, so every device meets the same ones."""
    return torch.Generator().manual_seed(data.draw(st.integers(0, 2**31 - 1), label="seed"))


def draw_tensor(
    data: Any,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    scales: Sequence[float] = SCALES,
    layouts: Sequence[str] = LAYOUTS,
    contents: Sequence[str] = ("normal", "normal", "normal", "zeros", "repeated"),
) -> Tensor:
    """A normal tensor of a drawn scale, or zeros, or equal rows; fenced, in a drawn layout."""
    generator = draw_generator(data)
    scale = data.draw(st.sampled_from([in_range(each, dtype) for each in scales]), label="scale")
    content = data.draw(st.sampled_from(contents), label="content")
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * scale
    if content == "zeros":
        values = torch.zeros_like(values)
    elif content == "repeated" and len(shape) > 1:
        values = values[:1].expand(tuple(shape))
    return fenced(values.to(dtype), device, data.draw(st.sampled_from(layouts), label="layout"))


def fenced(values: Tensor, device: torch.device, layout: str = "contiguous") -> Tensor:
    """The values in a storage fenced by NaN.

    Args:
        layout: "padded" leaves NaN between rows, "transposed" swaps the strides of the last two dimensions.
    """
    shape = list(values.shape)
    if layout == "transposed" and len(shape) > 1:
        return fenced(values.mT.contiguous(), device).mT
    pad = 5 if layout == "padded" and shape else 0
    rows = values.numel() // shape[-1] if shape and shape[-1] else 0
    width = (shape[-1] if shape else 1) + pad
    length = max(rows * width, values.numel())
    fence = float("nan") if values.is_floating_point() else INTEGER_FENCE
    storage = torch.full((length + 2 * FENCE,), fence, dtype=values.dtype, device=device)
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * (shape[i + 1] + (pad if i + 1 == len(shape) - 1 else 0))
    view = storage.as_strided(shape, strides, FENCE)
    view.copy_(values)
    return view


def draw_upstream(data: Any, like: Tensor) -> Tensor:
    """An upstream gradient: numbers of its own, or one number expanded with stride 0, as `.sum()` gives."""
    generator = draw_generator(data)
    if data.draw(st.booleans(), label="expanded upstream"):
        return (
            torch.randn((), generator=generator, dtype=torch.float64)
            .to(like.dtype)
            .to(like.device)
            .expand(like.shape)
        )
    values = torch.randn(tuple(like.shape), generator=generator, dtype=torch.float64).to(like.dtype)
    return fenced(values, like.device, data.draw(st.sampled_from(LAYOUTS), label="upstream layout"))


def gradients(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], upstreams: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of every input for these upstream gradients, one for each output."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return list(
        torch.autograd.grad(
            outputs, list(inputs), [each.to(out.dtype) for each, out in zip(upstreams, outputs, strict=True)]
        )
    )


def leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same numbers and strides as a leaf that wants a gradient; in float64 as a plain copy."""
    tensor = tensor.detach() if dtype in (None, tensor.dtype) else tensor.detach().to(dtype)
    return tensor.requires_grad_()
