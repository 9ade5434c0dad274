"""Runs a case through a function, and compares what two functions gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.bench_cases import Case

# A result may be this much farther from the wider reference than eager is, plus so many roundings of its
# largest number: proofs hold kernels to closer bounds, this catches what is fast because it is wrong here.
ERROR_FACTOR, ERROR_ULPS = 3.0, 2.0
UPSTREAM_SEED = 2


class Given(NamedTuple):
    """A case with an upstream gradient for each output; none for a step."""

    case: Case
    upstreams: tuple[Tensor, ...]


def given(case: Case, reference: Callable[..., Any]) -> Given:
    """The case with normal upstream gradients, 1 for a loss, of the reference's dtypes."""
    if not _leaves(case):
        return Given(case, ())
    with torch.no_grad():
        outputs = _tensors(reference(*case.arguments, **case.keywords))
    return Given(case, tuple(_upstream(out) for out in outputs))


def _upstream(out: Tensor) -> Tensor:
    if out.ndim == 0:
        return torch.ones_like(out)
    generator = torch.Generator(out.device).manual_seed(UPSTREAM_SEED)
    return torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)


def run(function: Callable[..., Any], asked: Given) -> list[Tensor]:
    """Outputs and gradients; of a step, what it returns."""
    case, leaves = asked.case, _leaves(asked.case)
    if not leaves:
        with torch.no_grad():
            return _tensors(function(*case.arguments, **case.keywords))
    outputs = _tensors(function(*case.arguments, **case.keywords))
    return [*(each.detach() for each in outputs), *torch.autograd.grad(outputs, leaves, asked.upstreams)]


def error_ratios(
    asked: Given, functions: Mapping[str, Callable[..., Any]], reference: Callable[..., Any]
) -> dict[str, float]:
    """Each function's error as a share of what is allowed, by the largest over all it gives and changes.

    The truth is the reference on the same numbers in the next wider dtype.
    """
    truth = _everything(reference, _wider(asked))
    eager = _everything(reference, asked)
    rounding = ERROR_ULPS * torch.finfo(asked.case.dtype).eps
    allowed = [
        ERROR_FACTOR * _distance(low, true) + rounding * _largest(true) + of_sum
        for low, true, of_sum in zip(eager, truth, _of_sums(len(truth), _leaves(asked.case)), strict=True)
    ]
    ratios = {}
    for name, function in functions.items():
        errors = [_distance(got, true) for got, true in zip(_everything(function, asked), truth, strict=True)]
        ratios[name] = max(_share(error, most) for error, most in zip(errors, allowed, strict=True))
    return ratios


def _everything(function: Callable[..., Any], asked: Given) -> list[Tensor]:
    """What `run` gives and, of a step, the arguments it changed; on copies, so that all start alike."""
    case = asked.case
    if _leaves(case):
        return run(function, asked)
    arguments = tuple(_mapped(each, torch.clone) for each in case.arguments)
    returned = run(function, asked._replace(case=case._replace(arguments=arguments)))
    return returned + _tensors([arguments[position] for position in case.changed])


def _wider(asked: Given) -> Given:
    """The same numbers one precision up: float32 for bf16, and float64 where all is float32."""
    narrow = asked.case.dtype
    wide = torch.float64 if narrow == torch.float32 else torch.float32

    def widened(tensor: Tensor) -> Tensor:
        if tensor.dtype not in (narrow, torch.bfloat16):
            return tensor
        return tensor.detach().to(wide).requires_grad_(tensor.requires_grad)

    arguments = tuple(wide if each == narrow else _mapped(each, widened) for each in asked.case.arguments)
    return Given(asked.case._replace(arguments=arguments), tuple(map(widened, asked.upstreams)))


def _of_sums(num_results: int, leaves: list[Tensor]) -> list[float]:
    """What a serial sum's roundings may come to in each result; gradients of the leaves come last.

    A number's gradient is a sum of n products of numbers near 1, n the elements of the largest leaf. They
    nearly cancel: partial sums grow as sqrt(n), so float32's roundings of them all come to some n eps / 5 (in
    8 lanes n eps / 14). Eager sums in pairs; a compiled sum of 2,048 terms to 20.7 was 4e-5 off.
    """
    num_terms = max((leaf.numel() for leaf in leaves), default=0)
    eps = torch.finfo(torch.float32).eps
    return [0.0] * (num_results - len(leaves)) + [0.0 if leaf.ndim else num_terms * eps for leaf in leaves]


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return _largest(a.to(b.dtype) - b)


def _share(error: float, allowed: float) -> float:
    if error == 0.0:
        return 0.0
    return error / allowed if allowed and error == error else float("inf")


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _leaves(case: Case) -> list[Tensor]:
    return [each for each in case.arguments if isinstance(each, Tensor) and each.requires_grad]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function applied to a tensor, or to each of a list of them; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    return [_mapped(each, function) for each in value] if isinstance(value, list) else value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else [each for part in value for each in _tensors(part)]
