"""A plan as a table a person reads: what, how much, and why. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bench.spec.batch_ramp import is_on
from bench.spec.plan import Plan
from bench.spec.scaling import REFERENCE_BATCH_TOKENS

Row = tuple[str, str, str]


def plan_table(plan: Plan) -> str:
    """Aligned lines, a blank line between groups, refusals last."""
    groups = [list(group(plan)) for group in (_model, _parameters, _horizon, _rates, _step, _cost)]
    widths = [max(len(row[i]) for group in groups for row in group) for i in (0, 1)]
    lines = [_title(plan)]
    for group in groups:
        lines.append("")
        lines += [f"{what:<{widths[0]}}  {value:>{widths[1]}}  {why}".rstrip() for what, value, why in group]
    if plan.refusals:
        lines += ["", *(f"refused: {refusal}" for refusal in plan.refusals)]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    title = f"{plan.recipe_name} on {plan.track_name}"
    if plan.track_fields:
        title += f"\nthe track sets {', '.join(plan.track_fields)}"
    return title


def _model(plan: Plan) -> Iterator[Row]:
    model = plan.recipe.model
    yield "layers", f"{plan.layers}", ""
    yield (
        "width",
        f"{plan.width:,}",
        f"{plan.layers} x aspect {model.aspect_ratio}, whole heads of {model.head_dim}",
    )
    grouped = f", {plan.model.num_kv_heads} for keys" if plan.model.num_kv_heads != plan.heads else ""
    yield "heads", f"{plan.heads}", f"width / {model.head_dim}{grouped}"
    yield "sequence", f"{plan.model.sequence_length:,}", f"windows {_windows(plan)}"
    yield "vocabulary", f"{plan.vocab_padded:,}", f"{model.vocab_size:,} padded to a multiple of 64"
    compiled = "compiled" if plan.compiled else f"eager{_why_eager(plan)}"
    yield "compute", plan.recipe.precision.compute, f"float32 masters and moments; {compiled}"


def _why_eager(plan: Plan) -> str:
    return f": {plan.machine.compile_refusal}" if plan.recipe.compile.enabled else ": the recipe asks for it"


def _windows(plan: Plan) -> str:
    sizes = plan.model.window_sizes
    return (
        " ".join(f"{size:,}" for size in sorted(set(sizes))) + f", pattern {plan.recipe.model.window_pattern}"
    )


def _parameters(plan: Plan) -> Iterator[Row]:
    for group, count in plan.parameters.items():
        yield f"  {group}", f"{count:,}", f"{count / plan.parameters_total:.1%}"
    yield "parameters", f"{plan.parameters_total:,}", "all groups"
    yield (
        "scaling parameters",
        f"{plan.scaling_parameters:,}",
        "matrices + lm_head: the N of tokens = ratio x N",
    )


def _horizon(plan: Plan) -> Iterator[Row]:
    horizon = getattr(plan.recipe.horizon, plan.horizon)
    why = "an estimate: the run stops by its clock" if plan.horizon == "seconds" else "floor(tokens / batch)"
    is_growing = is_on(plan.recipe.schedule.batch_warmup)
    yield "horizon", f"{horizon:,}", plan.horizon
    yield (
        "target tokens",
        f"{plan.target_tokens:,}",
        f"{plan.param_data_ratio:.2f} a scaling parameter in whole steps",
    )
    auto = (
        "2^round(log2(2^19 (D/D_d12)^0.383)), arXiv 2505.13738"
        if plan.recipe.batch.tokens == "auto"
        else "given"
    )
    yield "batch", f"{plan.batch_tokens:,}", auto
    if is_growing:
        growing_steps = plan.batch_ramp.growing_steps
        yield (
            "batch warm-up",
            f"from {plan.tokens_of(0):,}",
            f"over {growing_steps:,} steps, {plan.tokens_before(growing_steps):,} tokens, "
            "by micro-batches; LR and WD x sqrt(batch / full batch)",
        )
        why = "more than floor(tokens / batch): the first are smaller"
    yield "iterations", f"{plan.iterations:,}", why
    yield (
        "tokens",
        f"{plan.tokens:,}",
        "floor(target / batch) x batch" if is_growing else "iterations x batch",
    )


def _rates(plan: Plan) -> Iterator[Row]:
    rates = plan.rates
    yield (
        "matrix LR",
        f"{plan.matrix_lr:.5g}",
        f"x sqrt(B / {REFERENCE_BATCH_TOKENS:,}) = {rates.batch_lr_scale:.4f}",
    )
    yield (
        "AdamW LR scale",
        f"{rates.width_lr_scale:.5g}",
        "sqrt(768 / width), of lm_head, wte and value_embeds",
    )
    yield "weight decay", f"{plan.weight_decay:.5g}", "x sqrt(B / 2^19) x D_d12 / D: tau stays constant"
    tau = f"{plan.tau:.3g}" if math.isfinite(plan.tau) else "none"
    yield "tau", tau, "B / (LR x WD x D), in runs (arXiv 2405.13698)"


def _step(plan: Plan) -> Iterator[Row]:
    why = "given" if plan.recipe.batch.device_sequences != "auto" else "largest power of two that fits"
    yield "rows at once", f"{plan.device_sequences}", f"a device; {why}"
    yield "accumulation", f"{plan.accumulation}", f"on each of {plan.world_size} device(s)"
    for choice in plan.kernels:
        yield choice["op"], choice["implementation"], choice["reason"]


def _cost(plan: Plan) -> Iterator[Row]:
    yield "FLOPs a token", f"{plan.flops_per_token:.4g}", "6 x matmul parameters + attention over the windows"
    yield "FLOPs", f"{plan.total_flops:.4g}", "tokens x FLOPs a token"
    memory = plan.memory
    parts = (
        f"weights {_size(memory.weights_bytes)}, gradients {_size(memory.gradients_bytes)}, "
        f"optimizer {_size(memory.optimizer_bytes)}, activations {_size(memory.activations_bytes)}"
    )
    yield "peak memory", _size(plan.predicted_peak_bytes), parts
    seconds = "n/a" if plan.predicted_seconds is None else _duration(plan.predicted_seconds)
    yield "training time", seconds, plan.machine.rate_source
    if plan.predicted_dollars is not None:
        yield "cost", f"${plan.predicted_dollars:,.2f}", "at the track's declared price a device-hour"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.2f} h"
    )
