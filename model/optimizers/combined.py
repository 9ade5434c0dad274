"""Muon for the matrices, AdamW for the rest, as one optimizer for 1..N ranks.

Gradients are averaged over ranks and optimizer states are sharded in the same step (ZeRO-2), in three phases
so that communication overlaps with arithmetic: start every reduction; as each arrives, update what this rank
owns and start the gather of the result; wait for the gathers. AdamW shards a parameter by rows where they
divide by the number of ranks and keeps it whole (all-reduced) where they do not; Muon shards its stack of
matrices. On one rank every reduction and gather is absent and the rank owns everything: the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from model.optimizers.adamw import adamw_step_
from model.optimizers.muon import muon_step_, shape_lr_scale
from model.schedule import StepScales


class Pending(NamedTuple):
    """A communication under way, and what to do when it is done."""

    work: dist.Work | None
    copy_from: list[Tensor]
    copy_to: list[Tensor]

    def finish(self) -> None:
        """Wait, then copy the result where it belongs."""
        if self.work is not None:
            self.work.wait()
        if self.copy_to:
            torch._foreach_copy_(self.copy_to, self.copy_from)


class MuonAdamW(torch.optim.Optimizer):
    """See the file's head.

    Args:
        groups: dicts with "params", "name", "kind" ("muon" | "adamw"), "base_lr", "base_weight_decay" and
            the constants of their kind ("betas", "eps" | "beta2", "polar_steps", "polar_norm_scale"). A Muon
            group's parameters all have one shape.
        polar_dtype: dtype of the polar iteration.
        process_group: ranks that share the step, or None for one rank.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        polar_dtype: torch.dtype,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        # By "fused", `load_state_dict` brings AdamW's step counts to the device as float32: it needs them so.
        super().__init__(groups, defaults={"fused": True})
        self.polar_dtype = polar_dtype
        self.process_group = process_group
        self.world_size = process_group.size() if process_group is not None else 1
        self.rank = process_group.rank() if process_group is not None else 0

    @torch.no_grad()
    def step(self, scales: StepScales) -> None:  # type: ignore[override]
        """One step in place with this step's multipliers and momentum; gradients are consumed."""
        groups = self.param_groups
        reduced = [self._reduce_muon(g) if g["kind"] == "muon" else self._reduce_adamw(g) for g in groups]
        gathers: list[Pending] = []
        for group, (slices, works) in zip(groups, reduced, strict=True):
            for work in works:
                work.wait()
            step = self._step_muon if group["kind"] == "muon" else self._step_adamw
            gathers += step(group, slices, scales)
        for gather in gathers:
            gather.finish()

    def _sharded(self, param: Tensor) -> bool:
        """Whether AdamW shards this parameter by rows."""
        return self.world_size > 1 and param.ndim > 1 and param.shape[0] % self.world_size == 0

    def _reduce_adamw(self, group: dict[str, Any]) -> tuple[list[Tensor], list[dist.Work]]:
        slices, works = [], []
        for param in group["params"]:
            grad = param.grad
            if self._sharded(param):
                grad = torch.empty_like(param.grad[: param.shape[0] // self.world_size])
                works.append(self._start(dist.reduce_scatter_tensor, grad, param.grad))
            elif self.world_size > 1:
                works.append(self._start(dist.all_reduce, grad))
            slices.append(grad)
        return slices, works

    def _step_adamw(self, group: dict[str, Any], grads: list[Tensor], scales: StepScales) -> list[Pending]:
        self._average(grads)
        params = [self._own_rows(param) for param in group["params"]]
        adamw_step_(
            params,
            grads,
            [self.state[param] for param in group["params"]],
            lr=group["base_lr"] * scales.learning_rate,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["base_weight_decay"],
        )
        return [
            Pending(self._start(dist.all_gather_into_tensor, param.data, own.clone()), [], [])
            for param, own in zip(group["params"], params, strict=True)
            if self._sharded(param)
        ]

    def _own_rows(self, param: Tensor) -> Tensor:
        if not self._sharded(param):
            return param.data
        rows = param.shape[0] // self.world_size
        return param.data[self.rank * rows : (self.rank + 1) * rows]

    def _reduce_muon(self, group: dict[str, Any]) -> tuple[list[Tensor], list[dist.Work]]:
        grads = [param.grad for param in group["params"]]
        if self.world_size == 1:
            return [torch.stack(grads)], []
        per_rank = -(-len(grads) // self.world_size)
        padding = [torch.zeros_like(grads[0])] * (per_rank * self.world_size - len(grads))
        own = torch.empty((per_rank, *grads[0].shape), dtype=grads[0].dtype, device=grads[0].device)
        return [own], [self._start(dist.reduce_scatter_tensor, own, torch.stack(grads + padding))]

    def _step_muon(self, group: dict[str, Any], grads: list[Tensor], scales: StepScales) -> list[Pending]:
        self._average(grads)
        params, stacked_grads = group["params"], grads[0]
        per_rank = stacked_grads.shape[0]
        own = params[self.rank * per_rank : (self.rank + 1) * per_rank]
        updated = torch.zeros_like(stacked_grads)
        if own:
            stacked = updated[: len(own)]
            torch.stack([param.data for param in own], out=stacked)
            muon_step_(
                stacked,
                stacked_grads[: len(own)],
                self.state[params[0]],
                lr=group["base_lr"] * scales.learning_rate * shape_lr_scale(*params[0].shape),
                momentum=scales.momentum,
                beta2=group["beta2"],
                weight_decay=group["base_weight_decay"] * scales.weight_decay,
                polar_steps=group["polar_steps"],
                polar_norm_scale=group["polar_norm_scale"],
                polar_dtype=self.polar_dtype,
            )
        targets = [param.data for param in params]
        if self.world_size == 1:
            return [Pending(None, list(updated.unbind(0)), targets)]
        gathered = updated.new_empty((per_rank * self.world_size, *updated.shape[1:]))
        work = self._start(dist.all_gather_into_tensor, gathered, updated)
        return [Pending(work, list(gathered[: len(params)].unbind(0)), targets)]

    def _start(self, collective: Any, *tensors: Tensor) -> dist.Work:
        work: dist.Work = collective(*tensors, group=self.process_group, async_op=True)
        return work

    def _average(self, grads: list[Tensor]) -> None:
        """Sum over ranks -> mean; gloo has no averaging reduction."""
        if self.world_size > 1:
            torch._foreach_div_(grads, self.world_size)
