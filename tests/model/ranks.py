"""One step of MuonAdamW as several processes share it: what a spawned rank runs, and what it works on."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kernels.choices import choose
from kernels.dispatch import bind
from model.optimizers.combined import MuonAdamW
from model.optimizers.loss_scaler import LossScaler
from model.schedule import StepScales

NUM_STEPS = 3
WORLD_SIZES = (2, 3)
# Muon: 5 matrices divide by neither 2 nor 3, and 1 leaves ranks without any. AdamW: 6 rows divide by both, 7
# by none, 4 by two only, and a vector is never sharded.
MUON_SHAPES = [[(6, 6)] * 5, [(4, 8)], [(8, 4)] * 3]
ADAMW_SHAPES = [[(6, 3), (7, 3)], [(4, 5), (5,)]]
MUON_CONSTANTS = {
    "beta2": 0.9,
    "polar_steps": 5,
    "polar_norm_scale": 1.01,
    "equilibrate": "none",
    "renormalise": False,
}
KERNELS = bind(choose("cpu"), compiled=False)


def parameters(tables: torch.dtype = torch.float32) -> list[list[nn.Parameter]]:
    """The groups' parameters, Muon's first; the same in every process. AdamW's first are in `tables`."""
    generator = torch.Generator().manual_seed(0)
    groups = [
        [torch.randn(each, generator=generator) for each in group] for group in MUON_SHAPES + ADAMW_SHAPES
    ]
    groups[len(MUON_SHAPES)] = [each.to(tables) for each in groups[len(MUON_SHAPES)]]
    return [[nn.Parameter(each) for each in group] for group in groups]


def optimizer(params: list[list[nn.Parameter]], process_group: Any = None) -> MuonAdamW:
    """Over these parameters, every term large enough to count: without eps a sum passes for a mean."""
    muon = {"kind": "muon", "base_lr": 0.02, "base_weight_decay": 0.3, **MUON_CONSTANTS}
    adamw = {"kind": "adamw", "base_lr": 0.01, "base_weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 0.1}
    groups: list[dict[str, Any]] = []
    for i, group in enumerate(params):
        kind = muon if i < len(MUON_SHAPES) else adamw
        groups.append({"params": group, "name": f"group {i}", **kind})
    return MuonAdamW(groups, torch.float32, KERNELS, process_group)


def gradients(step: int, rank: int, tables: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    """What this rank's batch gives at this step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [[torch.randn(p.shape, generator=generator).to(p) for p in group] for group in parameters(tables)]


def scales(step: int) -> StepScales:
    """Different at every step."""
    return StepScales(
        learning_rate=1.0 - 0.2 * step, momentum=0.85 + 0.03 * step, weight_decay=1.0 - 0.3 * step
    )


def give(params: list[list[nn.Parameter]], grads: list[list[torch.Tensor]]) -> None:
    """Set the gradients."""
    for group, group_grads in zip(params, grads, strict=True):
        for param, grad in zip(group, group_grads, strict=True):
            param.grad = grad.clone()


def run_rank(rank: int, folder: str, steps: Callable[[int, Any], dict[str, Any]] | None = None) -> None:
    """Join the others; for each world size, take the steps on this rank's gradients and save the outcome."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    largest = max(WORLD_SIZES)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=largest)
    for world_size in WORLD_SIZES:
        group = dist.new_group(list(range(world_size)))
        if rank < world_size:
            torch.save((steps or steps_of_rank)(rank, group), Path(folder) / f"{world_size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def steps_of_rank(rank: int, process_group: dist.ProcessGroup) -> dict[str, Any]:
    """The parameters after the steps, this rank's share of each Muon group's momenta, and tables in bf16."""
    params, halved = (taken(rank, process_group, tables) for tables in (torch.float32, torch.bfloat16))
    outcome = {"params": [[p.data for p in group] for group in params[0]], "momenta": momenta(*params)}
    return outcome | {"tables": [p.data for p in halved[0][len(MUON_SHAPES)]]}


def taken(
    rank: int, process_group: dist.ProcessGroup, tables: torch.dtype
) -> tuple[list[list[nn.Parameter]], MuonAdamW]:
    """The parameters after the steps, and the optimizer that took them."""
    params = parameters(tables)
    ours = optimizer(params, process_group)
    for step in range(NUM_STEPS):
        give(params, gradients(step, rank, tables))
        ours.step(scales(step))
    return params, ours


def scaled_steps_of_rank(rank: int, process_group: dist.ProcessGroup) -> dict[str, Any]:
    """The parameters after steps of which the last rank spoils the second, and the scaler's state."""
    params = parameters()
    ours = optimizer(params, process_group)
    scaler = LossScaler(chain(*params), 1024.0, 2000, process_group)
    for step in range(NUM_STEPS):
        give(params, [[grad * scaler.scale for grad in group] for group in gradients(step, rank)])
        if step == 1 and rank == process_group.size() - 1:
            assert params[-1][0].grad is not None
            params[-1][0].grad[0, 0] = float("inf")
        ours.step(scales(step), scaler.unscale_())
    outcome: dict[str, Any] = {"params": [[p.data for p in group] for group in params]}
    return outcome | {"counts": scaler.counts.tolist(), "scale": float(scaler.scale)}


def momenta(params: list[list[nn.Parameter]], ours: MuonAdamW) -> list[torch.Tensor]:
    """The momenta that this optimizer holds, [matrices, M, P] a Muon group."""
    held = [ours.state[group[0]].get("momentum") for group in params[: len(MUON_SHAPES)]]
    return [
        torch.empty(0, *shapes[0]) if m is None else m for m, shapes in zip(held, MUON_SHAPES, strict=True)
    ]
