"""How much each lever of a recipe did: 0 says that it was on and changed nothing.

A lever that is off has no entry. Most are read off the final weights and optimizer states; the clip is
counted at every step.

| lever | counter |
| --- | --- |
| value_embeddings, attention_gate | root mean square of their tables and gate weights |
| latent_attention | the least root mean square of its matrices |
| smear, backout | magnitude of the strength |
| value_residual | mean magnitude of the shares |
| bigram | mean magnitude of the strengths, times the table's root mean square: the least of several tables' |
| muon_eq | mean relative change of a row's or column's norm, in the last momentum |
| muon_plus | mean relative change of a matrix's Frobenius norm, after the last momentum's polar step |
| normuon | mean relative deviation of a neuron's scale from its matrix's mean |
| cautious_decay | share of the last momentum's entries whose weights decay |
| qk_clip | share of matrices ("weight_rms") or heads ("logit") that were scaled, over all steps |
| batch_warmup | share of the steps whose batch is smaller |
| manual_gc | share of the steps after which garbage was collected |
| z_loss | its mean share of the loss on the validation tokens |
| bfloat16_embeddings | share of the entries that float32 would move whose step, the last once more, is lost |
| fp8 | share of the FLOPs of products with parameters |
| loss_scaling | binary logarithm of the last scale: 0 where losses are no longer multiplied |
| steps_not_skipped | share of the steps whose gradients did not overflow float16 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.prepared import Prepared
from bench.spec.batch_ramp import is_on
from bench.spec.plan import Plan
from bench.training.loop import Trainer
from kernels.reference import SMALLEST_NORM, SMALLEST_SECOND_MOMENT, polar_express
from model.flops import fp8_share
from model.gpt import Block
from model.schedule import learning_rate_scale


@torch.no_grad()
def activity(plan: Plan, trainer: Trainer, prepared: Prepared) -> dict[str, float]:
    """The counters of the levers that are on, by name; every rank has to ask, for the others' states."""
    counters: dict[str, float] = dict(_of_model(trainer))
    muon_groups = [group for group in trainer.optimizer.param_groups if group["kind"] == "muon"]
    for name, counter in _of_muon(plan).items():
        values = [counter(group, trainer) for group in muon_groups]
        counters[name] = float(torch.stack(values).mean())
    if trainer.clip is not None:
        clipped, seen = trainer.clip.counts.tolist()
        counters["qk_clip"] = clipped / seen if seen else 0.0
    if is_on(plan.recipe.schedule.batch_warmup):
        counters["batch_warmup"] = plan.batch_ramp.growing_steps / plan.iterations
    if every_steps := plan.recipe.compile.manual_gc_every_steps:
        counters["manual_gc"] = plan.iterations // every_steps / plan.iterations
    if trainer.z_loss:
        counters["z_loss"] = _z_loss_share(trainer, prepared)
    if plan.recipe.precision.fp8 != "off":
        counters["fp8"] = fp8_share(plan.model)
    if plan.recipe.precision.embeddings == "bfloat16":
        counters["bfloat16_embeddings"] = _share_lost_to_rounding(plan, trainer)
    if trainer.scaler is not None:
        _, skipped, seen = trainer.scaler.counts.tolist()
        counters["loss_scaling"] = float(trainer.scaler.scale.log2())
        counters["steps_not_skipped"] = 1.0 - skipped / max(seen, 1)
    return counters


def _of_model(trainer: Trainer) -> Iterator[tuple[str, float]]:
    model = trainer.model
    if model.value_embeds:
        yield "value_embeddings", _rms(list(model.value_embeds.values()))
    latents = [b.attn.latent for b in model.blocks if isinstance(b, Block) and b.attn.latent is not None]
    if latents:
        yield "latent_attention", min(_rms([matrix.weight]) for one in latents for matrix in one.matrices())
    gates = [b.attn.output_gate for b in model.blocks if isinstance(b, Block)]
    if any(gate is not None for gate in gates):
        yield "attention_gate", _rms([gate.weight for gate in gates if gate is not None])
    if model.smear is not None:
        yield "smear", float(model.smear.scale.abs())
    if model.backout_lambda is not None:
        yield "backout", float(model.backout_lambda.abs())
    if model.value_lambdas is not None:
        yield "value_residual", float(model.value_lambdas.abs().mean())
    if model.bigrams is not None:
        tables = [model.bigrams.table, *model.bigrams.further_tables]
        yield "bigram", float(model.bigrams.lambdas.abs().mean()) * min(_rms([table]) for table in tables)


def _share_lost_to_rounding(plan: Plan, trainer: Trainer) -> float:
    """Lost steps of bfloat16 tables among those that float32 would take; decay is part of a step."""
    rate = learning_rate_scale(plan.iterations - 1, plan.iterations, plan.schedule)
    taken = lost = 0
    for group in trainer.optimizer.param_groups:
        for param in group["params"]:
            if param.dtype == torch.bfloat16:
                before, after = param.float(), _stepped_again(group, param, trainer, rate)
                moves = after != before
                taken += int(moves.sum())
                lost += int((moves & (after.bfloat16() == param)).sum())
    return lost / max(taken, 1)


def _stepped_again(group: dict[str, Any], param: Tensor, trainer: Trainer, rate: float) -> Tensor:
    """The parameter after AdamW's step from the moments as they are, in float32."""
    state, lr = trainer.optimizer.whole_state(group, param), group["base_lr"] * rate
    first, second = (1.0 - float(beta) ** group["step"] for beta in group["betas"])
    root = (state["exp_avg_sq"].float() / second).sqrt() + group["eps"]
    step: Tensor = lr / first * state["exp_avg"].float() / root
    decay: float = lr * group["base_weight_decay"]
    return param.float() * (1.0 - decay) - step


def _rms(tensors: list[Tensor]) -> float:
    squares = sum(float(tensor.detach().float().square().sum()) for tensor in tensors)
    return float((squares / sum(tensor.numel() for tensor in tensors)) ** 0.5)


def _of_muon(plan: Plan) -> dict[str, Callable[[dict[str, Any], Trainer], Tensor]]:
    muon = plan.recipe.optimizer.muon
    counters = {
        "muon_eq": (_equilibration, muon.equilibrate != "none"),
        "muon_plus": (_renormalisation, muon.renormalise),
        "normuon": (_neuron_scales, muon.normuon_beta2 > 0.0),
        "cautious_decay": (_decaying, muon.weight_decay > 0.0),
    }
    return {name: counter for name, (counter, is_on) in counters.items() if is_on}


def _momentum(group: dict[str, Any], trainer: Trainer) -> Tensor:
    momentum_SMP: Tensor = trainer.optimizer.whole_state(group, group["params"][0])["momentum"]
    return momentum_SMP


def _equilibration(group: dict[str, Any], trainer: Trainer) -> Tensor:
    dim = -1 if group["equilibrate"] == "row" else -2
    norms = torch.linalg.vector_norm(_momentum(group, trainer), dim=dim, keepdim=True)
    targets_S11 = norms.square().mean((-2, -1), keepdim=True).sqrt()
    changes: Tensor = targets_S11 / norms.clamp_min(SMALLEST_NORM) - 1.0
    return changes.abs().mean()


def _orthogonal(group: dict[str, Any], trainer: Trainer) -> Tensor:
    momentum_SMP = _momentum(group, trainer).to(trainer.optimizer.polar_dtype)
    constants = (group[name] for name in ("polar_steps", "polar_norm_scale", "equilibrate"))
    update_SMP = polar_express(momentum_SMP, *constants)
    return update_SMP.float()


def _renormalisation(group: dict[str, Any], trainer: Trainer) -> Tensor:
    update_SMP = _orthogonal(group, trainer)
    target = min(update_SMP.shape[-2:]) ** 0.5
    norms_S = torch.linalg.vector_norm(update_SMP, dim=(-2, -1))
    changes_S: Tensor = target / norms_S.clamp_min(SMALLEST_NORM) - 1.0
    return changes_S.abs().mean()


def _neuron_scales(group: dict[str, Any], trainer: Trainer) -> Tensor:
    second_moment: Tensor = trainer.optimizer.whole_state(group, group["params"][0])["second_moment"]
    scales = second_moment.clamp_min(SMALLEST_SECOND_MOMENT).rsqrt()
    means_S11 = scales.mean((-2, -1), keepdim=True)
    return ((scales - means_S11).abs() / means_S11).mean()


def _decaying(group: dict[str, Any], trainer: Trainer) -> Tensor:
    momentum_SMP = _momentum(group, trainer)
    params_SMP = torch.stack([param.data for param in group["params"]])[: momentum_SMP.shape[0]]
    return (momentum_SMP * params_SMP >= 0.0).float().mean()


def _z_loss_share(trainer: Trainer, prepared: Prepared) -> float:
    model = trainer.model
    ids = prepared.validation.tokens[: model.config.sequence_length + 1].astype(np.int64)
    tokens_BT = torch.from_numpy(ids)[None].to(model.wte.device)
    hidden_BTD = model(tokens_BT[:, :-1])
    arguments = hidden_BTD.flatten(0, 1), model.head_weight(), tokens_BT[:, 1:].flatten()
    terms = {"softcap": model.config.softcap, "reduction": "mean"}
    without = float(model.kernels.linear_cross_entropy(*arguments, **terms))
    with_it = float(model.kernels.linear_cross_entropy(*arguments, **terms, z_loss=trainer.z_loss))
    return (with_it - without) / with_it
