"""What a run has compiled, held to eager references on the run's own shapes, before its first step.

The properties of the ops draw small tensors and call one op at a time. What trains is a trunk compiled whole
around those ops, and passes that are compiled for large tensors only. So once a machine the compiled loss and
its gradients, of one micro-batch of random tokens, are compared with what the references give eagerly: in the
run's dtype, which sets the bound, and in a wider one, which is taken for the truth. Row by row, so that it
needs no more memory than a step. All weights are moved by noise first, for initial ones hide most of the
trunk: its projections are zeros. Afterwards they are what they were, to the bit.

The bound is for gross faults, of code that computes something else: norms of whole tensors, with room for
what rounding does differently in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor

from bench.data.loader import Batch, Cursor
from bench.errors import ProofFailed
from bench.proving.bounds import error_ratio
from bench.training.loop import Trainer, batch_loss
from kernels.compiling import LEAST_ELEMENTS
from kernels.dispatch import Kernels, bind
from kernels.reference import accumulation_dtype
from model.attention import rotary_tables
from model.gpt import GPT

# An error may be so many times that of the eager references, plus this share of the truth. Of quick (bf16,
# AVX2, fused kernels, compiled) the matrices then come to 0.08 to 0.12 of it, scalars and gates to 0.18.
FACTOR, SHARE = 4.0, 0.05
# Gradients of so few numbers are one vector: of a single number the eager error may be nothing by chance.
FEW = 1024
NOISE = 0.02
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 0.02, 0.1, 0.9

Gradients = dict[str, Tensor]


def error_ratios(trainer: Trainer, rows: int, sequence_length: int) -> dict[str, float]:
    """Error over its bound, at most 1, of the loss, its gradients and the passes of the Muon step.

    Args:
        rows: sequences of the micro-batch that the trunk was compiled for.

    Raises:
        ProofFailed: naming what is wrong by more than its bound.
    """
    generator = torch.Generator().manual_seed(0)
    ratios = _loss_ratios(trainer, rows, sequence_length, generator)
    ratios |= muon_ratios(trainer, generator)
    for name, ratio in ratios.items():
        if not ratio <= 1.0:  # nor NaN
            raise ProofFailed(
                f"compiled, {name} is wrong by {ratio:.3g} times its bound",
                "`compile.enabled = false` trains without; empty the compile cache in the data folder",
            )
    return {
        "loss": ratios.pop("the loss"),
        **_worst(ratios, "gradients", "the gradient of "),
        **_worst(ratios, "muon", "muon_", "polar_"),
    }


def _worst(ratios: Mapping[str, float], name: str, *prefixes: str) -> dict[str, float]:
    return {name: max((ratio for key, ratio in ratios.items() if key.startswith(prefixes)), default=0.0)}


def _loss_ratios(
    trainer: Trainer, rows: int, sequence_length: int, generator: torch.Generator
) -> dict[str, float]:
    """Of the loss and of each parameter's gradient."""
    model = trainer.model
    shape = (2, rows, sequence_length)
    tokens_2BT = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.wte.device)
    config = msgspec.structs.replace(model.config, observes_logits=False)
    wider = accumulation_dtype(model.wte.new_empty(0, dtype=model.compute_dtype))
    wider = torch.float64 if wider == model.compute_dtype else wider
    exact_config = msgspec.structs.replace(config, fp8="off")
    with _moved(model, generator):
        actual = _gradients(trainer, [tokens_2BT])
        by_row = list(torch.split(tokens_2BT, 1, dim=1))
        eager = _gradients(_of_references(trainer, config, model.compute_dtype), by_row)
        exact = _gradients(_of_references(trainer, exact_config, wider), by_row)
    if trainer.clip is not None:
        trainer.clip.forget()
    return {name: _ratio(actual[name], eager[name], exact[name]) for name in exact}


@contextmanager
def _moved(model: GPT, generator: torch.Generator) -> Iterator[None]:
    """Inside, every weight is another by some noise."""
    kept = [param.detach().clone() for param in model.parameters()]
    try:
        with torch.no_grad():
            for param in model.parameters():
                param.add_((torch.randn(param.shape, generator=generator) * NOISE).to(param))
        yield
    finally:
        with torch.no_grad():
            for param, before in zip(model.parameters(), kept, strict=True):
                param.copy_(before)


def _of_references(trainer: Trainer, config: Any, dtype: torch.dtype) -> Trainer:
    """The same weights, themselves, in a model of eager references."""
    model = trainer.model
    with torch.device("meta"):
        twin = GPT(config, dtype, bind((), compiled=False))
    twin.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    twin.cos, twin.sin = rotary_tables(config, model.wte.device, dtype)
    return trainer._replace(model=twin, trunk=twin)


def _gradients(trainer: Trainer, micros_2BT: list[Tensor]) -> Gradients:
    """Of the mean loss over these parts of a micro-batch, few numbers together; and the loss."""
    total = None
    for tokens_2BT in micros_2BT:
        loss = batch_loss(trainer, Batch(tokens_2BT, Cursor(step=0, micro=0))) / len(micros_2BT)
        scaled = loss if trainer.scaler is None else trainer.scaler.scaled(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    found, few = {"the loss": total.reshape(1)}, []
    for name, param in trainer.model.named_parameters():
        gradient = torch.zeros_like(param) if param.grad is None else param.grad
        param.grad = None
        if gradient.numel() < FEW:
            few.append(gradient.flatten().double())
        else:
            found[f"the gradient of {name}"] = gradient
    return found | ({"the gradient of scalars and gates": torch.cat(few)} if few else {})


def _ratio(actual: Tensor, eager: Tensor, exact: Tensor) -> float:
    """Norms of the errors, as a share of the bound."""
    exact = exact.double()
    error, eagers = (float((x.double() - exact).norm()) for x in (actual, eager))
    allowed = FACTOR * eagers + SHARE * float(exact.norm())
    if error == 0.0:
        return 0.0
    return error / allowed if allowed else math.inf


@torch.no_grad()
def muon_ratios(trainer: Trainer, generator: torch.Generator) -> dict[str, float]:
    """Of the Muon step's ops by matrix shape, on random stacks that are large enough to be compiled."""
    ratios: dict[str, float] = {}
    for group in trainer.optimizer.param_groups:
        if group["kind"] == "muon":
            param = group["params"][0]
            enough = max(2, -(-LEAST_ELEMENTS // param.numel()))  # of one matrix alone torch compiles anew
            shape = (min(len(group["params"]), enough), *param.shape)
            tensors = [torch.randn(shape, generator=generator).to(param) for _ in range(3)]
            for name, ratio in _step_ratios(trainer, group, *tensors).items():
                ratios[f"{name} of {group['name']}"] = ratio
    return ratios


def _step_ratios(
    trainer: Trainer, group: Mapping[str, Any], params: Tensor, grads: Tensor, memory: Tensor
) -> dict[str, float]:
    """Each op is given the same input in all three; bounds are those of its property `value`."""
    ours, references = trainer.optimizer.kernels, bind((), compiled=False)
    dtype = trainer.optimizer.polar_dtype

    def each(function: Callable[[Kernels, bool], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return function(ours, False), function(references, False), function(references, True)

    def cast(tensor: Tensor, exact: bool) -> Tensor:
        return tensor.double() if exact else tensor.clone()

    def update(kernels: Kernels, exact: bool) -> Tensor:
        moved = cast(params, exact)
        second = moved.new_full((*moved.shape[:-1], 1), 0.5) if group["beta2"] else None
        if second is not None and moved.shape[-2] < moved.shape[-1]:
            second = moved.new_full((len(moved), 1, moved.shape[-1]), 0.5)
        kernels.muon_update(
            moved,
            cast(direction, exact),
            second,
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            beta2=group["beta2"],
            renormalise=group["renormalise"],
        )
        return moved

    direction = references.muon_direction(grads, memory.clone(), MOMENTUM, dtype)
    constants = group["polar_steps"], group["polar_norm_scale"], group["equilibrate"]
    directions = each(
        lambda kernels, exact: kernels.muon_direction(
            cast(grads, exact), cast(memory, exact), MOMENTUM, None if exact else dtype
        )
    )
    polar = each(lambda kernels, exact: kernels.polar_express(cast(direction, exact), *constants))
    ulps = 40 if dtype == torch.bfloat16 else 1000
    return {
        "muon_direction": error_ratio(*directions, ulps=4),
        "polar_express": error_ratio(*polar, factor=3, ulps=ulps, scale=1.0),
        "muon_update": error_ratio(*each(update), ulps=8),
    }
