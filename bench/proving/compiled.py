"""What a run has compiled, held to eager references on the run's own shapes, before its first step.

The properties of the ops draw small tensors and call one op at a time. What trains is a trunk compiled whole
around those ops, and passes that are compiled for large tensors only. So once a machine the compiled losses
and gradients of one micro-batch of random tokens are compared with what the references give eagerly: in the
run's dtype, which sets the bound, and in a wider one, which is taken for the truth. All weights are moved by
noise first, for initial ones hide most of the trunk: its projections are zeros. Afterwards they are what they
were, to the bit.

The bound is for gross faults, of code that computes something else: norms of whole tensors, with room for
what rounding does differently in another order.

The references go row by row and only norms of their errors are kept: beside the weights there are their
copy, the true gradients and one more set of gradients, where a step has the optimizer's states.
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
from bench.evaluation.bits_per_byte import token_losses
from bench.proving.bounds import error_ratio
from bench.proving.proof import COMPILED
from bench.training.loop import Trainer, batch_loss
from kernels.choices import Choice
from kernels.compiling import LEAST_ELEMENTS
from kernels.dispatch import Kernels, bind
from model.attention import rotary_tables
from model.config import ModelConfig
from model.gpt import GPT
from model.optimizers.muon import state_shapes

# An error may be so many times that of the eager references, plus this share of the truth. Of quick (bf16,
# AVX2, fused kernels, compiled) the matrices then come to 0.08 to 0.12 of it, scalars and gates to 0.28.
FACTOR, SHARE = 4.0, 0.05
LOSS_SHARE = 2e-3  # of a loss of 8 nats 0.016
POLAR_FACTOR = 2.0  # eager bf16 is wrong by up to a quarter of the truth's norm
# Gradients of so few numbers are one vector: of a single number the eager error may be nothing by chance.
FEW = 1024
NOISE = 0.02
LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 0.02, 0.1, 0.9
# float16's gradients are of a loss times this, halved until the eager ones are finite.
FLOAT16_SCALE = 2.0**16
# From this length on T x T probabilities and whole logits would outgrow a step: there the references are
# those implementations, uncompiled and proved by themselves, that hold neither.
LONG = 1024
LEAN = (Choice("attention", "blocked", "long rows"), Choice("linear_cross_entropy", "chunked", "long rows"))

# How what is looked at is called, by its name in the proof.
_BEGINNINGS: dict[str, tuple[str, ...]] = {
    "loss": ("the mean loss",),
    "evaluation": ("the losses of evaluation",),
    "gradients": ("the gradient of ",),
    "muon": ("muon_", "polar_"),
}

Gradients = dict[str, Tensor]


def error_ratios(trainer: Trainer, rows: int, sequence_length: int) -> dict[str, float]:
    """Error over its bound, at most 1, of each of `proof.COMPILED`.

    Args:
        rows: sequences of the micro-batch that the trunk was compiled for.

    Raises:
        ProofFailed: naming what is wrong by more than its bound.
    """
    generator = torch.Generator().manual_seed(0)
    ratios = _model_ratios(trainer, rows, sequence_length, generator)
    ratios |= muon_ratios(trainer, generator)
    for name, ratio in ratios.items():
        if not ratio <= 1.0:  # nor NaN
            raise ProofFailed(
                f"compiled, {name} is wrong by {ratio:.3g} times its bound",
                "`compile.enabled = false` trains without; empty the compile cache in the data folder",
            )
    return {
        name: max((ratio for key, ratio in ratios.items() if key.startswith(_BEGINNINGS[name])), default=0.0)
        for name in COMPILED
    }


def _model_ratios(
    trainer: Trainer, rows: int, sequence_length: int, generator: torch.Generator
) -> dict[str, float]:
    """Of the loss, of each parameter's gradient, and of each token's loss as evaluation takes it."""
    model = trainer.model
    shape = (2, rows, sequence_length)
    tokens_2BT = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.wte.device)
    by_row = list(torch.split(tokens_2BT, 1, dim=1))
    eager, exact = _references(trainer)
    with _moved(model, generator):
        scale = _scale(eager, by_row)
        truth = _gradients(exact, by_row, scale)
        errors = _errors(_gradients(eager, by_row, scale), truth)
        ratios = _ratios(_errors(_gradients(trainer, [tokens_2BT], scale), truth), errors, truth)
        ratios["the losses of evaluation"] = _evaluation_ratio(trainer, eager, exact, by_row)
    if trainer.clip is not None:
        trainer.clip.forget()
    return ratios


def _references(trainer: Trainer) -> tuple[Trainer, Trainer]:
    """Of the same weights: in the run's dtype, and in a wider one without fp8."""
    model = trainer.model
    config = msgspec.structs.replace(model.config, observes_logits=False)
    wider = torch.float64 if model.compute_dtype == torch.float32 else torch.float32
    eager = _of_references(trainer, config, model.compute_dtype)
    return eager, _of_references(trainer, msgspec.structs.replace(config, fp8="off"), wider)


def _scale(eager: Trainer, by_row: list[Tensor]) -> float:
    """What the loss is multiplied by before its gradients are taken: 1, but for float16."""
    scale = 1.0
    if eager.model.compute_dtype == torch.float16:
        scale = FLOAT16_SCALE
        while scale > 1.0 and not all(x.isfinite().all() for x in _gradients(eager, by_row, scale).values()):
            scale /= 2
        scale /= 4  # compiled code may overflow a little earlier
    return scale


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


def _of_references(trainer: Trainer, config: ModelConfig, dtype: torch.dtype) -> Trainer:
    """The same weights, themselves, in a model of eager references."""
    model = trainer.model
    is_lean = config.sequence_length >= LONG and dtype != torch.float16
    with torch.device("meta"):
        twin = GPT(config, dtype, bind(LEAN if is_lean else (), compiled=False))
    twin.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    twin.cos, twin.sin = rotary_tables(config, model.wte.device, dtype)
    return trainer._replace(model=twin, trunk=twin)


def _gradients(trainer: Trainer, micros_2BT: list[Tensor], scale: float) -> Gradients:
    """Of the mean loss over parts of a micro-batch, times `scale`, few numbers together; and that loss."""
    total = None
    for tokens_2BT in micros_2BT:
        loss = batch_loss(trainer, Batch(tokens_2BT, Cursor(step=0, micro=0))) / len(micros_2BT)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    found, few = {"the mean loss": total.reshape(1)}, []
    for name, param in trainer.model.named_parameters():
        gradient = torch.zeros_like(param) if param.grad is None else param.grad
        param.grad = None
        if gradient.numel() < FEW:
            few.append(gradient.flatten().double())
        else:
            found[f"the gradient of {name}"] = gradient
    return found | ({"the gradient of scalars and gates": torch.cat(few)} if few else {})


def _errors(found: Gradients, truth: Gradients) -> dict[str, float]:
    return {name: _error(found[name], exact) for name, exact in truth.items()}


def _error(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.to(exact.dtype) - exact))


def _ratios(errors: dict[str, float], eager: dict[str, float], truth: Gradients) -> dict[str, float]:
    return {
        name: _ratio(errors[name], eager[name], exact, share=LOSS_SHARE if name == "the mean loss" else SHARE)
        for name, exact in truth.items()
    }


def _ratio(
    error: float, eager: float, exact: Tensor, *, factor: float = FACTOR, share: float = SHARE
) -> float:
    """An error, as a norm, over what is allowed."""
    allowed = factor * eager + share * float(torch.linalg.vector_norm(exact))
    if error == 0.0:
        return 0.0
    return error / allowed if allowed else math.inf


@torch.no_grad()
def _evaluation_ratio(trainer: Trainer, eager: Trainer, exact: Trainer, by_row: list[Tensor]) -> float:
    """Of each token's loss, of a whole micro-batch at once."""
    losses = token_losses(trainer.model, *torch.cat(by_row, dim=1))
    by_eager, truth = (
        torch.cat([token_losses(each.model, *row) for row in by_row]) for each in (eager, exact)
    )
    return _ratio(_error(losses, truth), _error(by_eager, truth), truth, share=LOSS_SHARE)


@torch.no_grad()
def muon_ratios(trainer: Trainer, generator: torch.Generator) -> dict[str, float]:
    """Of the Muon step's ops by matrix shape, on random stacks that are large enough to be compiled."""
    ratios: dict[str, float] = {}
    for group in trainer.optimizer.param_groups:
        if group["kind"] == "muon":
            _, num_own = trainer.optimizer.own_matrices(group)
            param = group["params"][0]
            enough = max(2, -(-LEAST_ELEMENTS // param.numel()))  # of one matrix alone torch compiles anew
            shape = (min(num_own, enough), *param.shape)
            if not num_own:
                continue
            tensors = [torch.randn(shape, generator=generator).to(param) for _ in range(3)]
            for name, ratio in _step_ratios(trainer, group, *tensors).items():
                ratios[f"{name} of {group['name']}"] = ratio
    return ratios


def _step_ratios(
    trainer: Trainer, group: Mapping[str, Any], params: Tensor, grads: Tensor, memory: Tensor
) -> dict[str, float]:
    """Each op is given the same input in all three; the two elementary ones have their property's bound."""
    ours, references = trainer.optimizer.kernels, bind((), compiled=False)
    dtype = trainer.optimizer.polar_dtype

    def each(function: Callable[[Kernels, bool], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return function(ours, False), function(references, False), function(references, True)

    def cast(tensor: Tensor, exact: bool) -> Tensor:
        return tensor.double() if exact else tensor.clone()

    def update(kernels: Kernels, exact: bool) -> Tensor:
        moved = cast(params, exact)
        shape = state_shapes(moved[0], group["beta2"]).get("second_moment")
        second = None if shape is None else moved.new_full((len(moved), *shape), 0.5)
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
    of_ours, of_eager = (_error(result, polar[-1]) for result in polar[:-1])
    return {
        "muon_direction": error_ratio(*directions, ulps=4),
        "polar_express": _ratio(of_ours, of_eager, polar[-1], factor=POLAR_FACTOR),
        "muon_update": error_ratio(*each(update), ulps=8),
    }
