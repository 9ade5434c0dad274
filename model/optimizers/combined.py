"""Muon for the matrices, AdamW for the rest, as one optimizer for 1..N ranks.

Gradients are averaged over ranks and optimizer states are sharded in the same step (ZeRO-2), in three phases
so that communication overlaps with arithmetic: start every reduction; as each arrives, update what this rank
owns and start the gather of the result; wait for the gathers. AdamW shards a parameter by rows where they
divide by the number of ranks and keeps it whole (all-reduced) where they do not; Muon shards its stack of
matrices. On one rank every reduction and gather is absent and the rank owns everything: the same code.

The parameters of a Muon group lie in one storage, one after the other, so that their stack is updated where
it is; copying it together and apart again would read and write every parameter twice more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.dispatch import Kernels
from model.optimizers.adamw import adamw_step_
from model.optimizers.loss_scaler import Skip
from model.optimizers.muon import muon_step_, shape_lr_scale, state_shapes
from model.schedule import StepScales

# torch 2.13 renamed both; 2.11 and 2.12 know the old names only.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class MuonAdamW(torch.optim.Optimizer):
    """See the file's head.

    Args:
        groups: dicts with "params", "name", "kind" ("muon" | "adamw"), "base_lr", "base_weight_decay" and
            the constants of their kind ("betas", "eps" | "beta2", "polar_steps", "polar_norm_scale",
            "equilibrate", "renormalise"). A Muon group's parameters all have one shape; they are moved into
            one storage. An AdamW group gets "step", the number of steps taken.
        polar_dtype: dtype of the polar iteration.
        kernels: `muon_direction`, `polar_express`, `muon_update` and `adamw` are used.
        process_group: ranks that share the step, or None for one rank.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        polar_dtype: torch.dtype,
        kernels: Kernels,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(groups, defaults={})
        self.polar_dtype = polar_dtype
        self.kernels = kernels
        self.process_group = process_group
        self.world_size = process_group.size() if process_group is not None else 1
        self.rank = process_group.rank() if process_group is not None else 0
        self._stacks: dict[Tensor, Tensor] = {}  # by a group's first parameter
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._stacks[group["params"][0]] = self._stack(group["params"])
            else:
                group["step"] = 0

    @torch.no_grad()
    def step(self, scales: StepScales, skip: Skip | None = None) -> None:  # type: ignore[override]
        """One step in place with this step's multipliers and momentum; gradients are freed, group by group.

        Args:
            skip: whether the device leaves the whole step out, on all ranks alike (`LossScaler`).
        """
        reduced: Iterable[tuple[list[Tensor], list[dist.Work]]] = map(self._reduce, self.param_groups)
        if self.world_size > 1:  # all are on their way before the first is waited for
            reduced = list(reduced)
        gathers: list[dist.Work] = []
        for group, (slices, works) in zip(self.param_groups, reduced, strict=True):
            for work in works:
                work.wait()
            step = self._step_muon if group["kind"] == "muon" else self._step_adamw
            gathers += step(group, slices, scales, skip)
        for gather in gathers:
            gather.wait()

    def _sharded(self, param: Tensor) -> bool:
        """Whether AdamW shards this parameter by rows."""
        return self.world_size > 1 and param.ndim > 1 and param.shape[0] % self.world_size == 0

    def _reduce(self, group: dict[str, Any]) -> tuple[list[Tensor], list[dist.Work]]:
        """What this rank owns of the group's gradients, and what to wait for first; parameters keep none."""
        own, works = self._reduce_muon(group) if group["kind"] == "muon" else self._reduce_adamw(group)
        for param in group["params"]:
            param.grad = None
        return own, works

    def _reduce_adamw(self, group: dict[str, Any]) -> tuple[list[Tensor], list[dist.Work]]:
        slices, works = [], []
        for param in group["params"]:
            grad = param.grad
            if self._sharded(param):
                grad = torch.empty_like(param.grad[: param.shape[0] // self.world_size])
                works.append(self._start(reduce_scatter, grad, param.grad))
            elif self.world_size > 1:
                works.append(self._start(dist.all_reduce, grad))
            slices.append(grad)
        return slices, works

    def _step_adamw(
        self, group: dict[str, Any], grads: list[Tensor], scales: StepScales, skip: Skip | None
    ) -> list[dist.Work]:
        self._average(grads)
        params = [self._own_rows(param) for param in group["params"]]
        states = [self.state[param] for param in group["params"]]
        lr = group["base_lr"] * scales.learning_rate
        adamw_step_(params, grads, states, self.kernels, group, lr=lr, skip=skip)
        return [
            self._start(all_gather, param.data, own.clone())
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
        return [own], [self._start(reduce_scatter, own, torch.stack(grads + padding))]

    def _stack(self, params: list[Tensor]) -> Tensor:
        """Move the parameters into one storage, padded to equal shares of the ranks: [S, M, P]."""
        padded = -(-len(params) // self.world_size) * self.world_size
        stack_SMP = params[0].data.new_zeros((padded, *params[0].shape))
        for param, place in zip(params, stack_SMP, strict=False):
            place.copy_(param.data)
            param.data = place
        return stack_SMP

    def _step_muon(
        self, group: dict[str, Any], grads: list[Tensor], scales: StepScales, skip: Skip | None
    ) -> list[dist.Work]:
        self._average(grads)
        params = group["params"]
        stack_SMP = self._stacks[params[0]]
        for param, place in zip(params, stack_SMP, strict=False):
            assert param.data_ptr() == place.data_ptr(), f"a parameter of {group['name']} was moved elsewhere"
        own_SMP, num_own = self.own_matrices(group)
        if num_own:
            state = self.state[params[0]]
            self._step_matrices(group, own_SMP[:num_own], grads[0][:num_own], state, scales, skip)
        if self.world_size == 1:
            return []
        return [self._start(all_gather, stack_SMP, own_SMP.clone())]

    def own_matrices(self, group: dict[str, Any]) -> tuple[Tensor, int]:
        """(this rank's share of the stack, how many matrices of it are not padding)."""
        stack_SMP = self._stacks[group["params"][0]]
        per_rank = len(stack_SMP) // self.world_size
        own_SMP = stack_SMP[self.rank * per_rank : (self.rank + 1) * per_rank]
        return own_SMP, min(max(len(group["params"]) - self.rank * per_rank, 0), per_rank)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Have the matrices' step compiled, on zeros; parameters and states stay the same."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                own_SMP, num_own = self.own_matrices(group)
                if num_own:
                    zeros_SMP = torch.zeros_like(own_SMP[:num_own])
                    scales = StepScales(learning_rate=0.0, momentum=0.9, weight_decay=0.0)
                    self._step_matrices(group, zeros_SMP, zeros_SMP.clone(), {}, scales)

    def _step_matrices(
        self,
        group: dict[str, Any],
        params_SMP: Tensor,
        grads_SMP: Tensor,
        state: dict[str, Tensor],
        scales: StepScales,
        skip: Skip | None = None,
    ) -> None:
        muon_step_(
            params_SMP,
            grads_SMP,
            state,
            self.kernels,
            lr=group["base_lr"] * scales.learning_rate * shape_lr_scale(*params_SMP.shape[1:]),
            momentum=scales.momentum,
            weight_decay=group["base_weight_decay"] * scales.weight_decay,
            polar_dtype=self.polar_dtype,
            constants=group,
            skip=skip,
        )

    def whole_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        """State of a parameter as a lone rank holds it; every rank has to ask.

        Muon's state of a whole group is that of its first parameter.
        """
        state: dict[str, Tensor] = self.state[param]
        if self.world_size == 1:
            return state
        if group["kind"] == "adamw":
            if not self._sharded(param):
                return state
            return {name: self._gathered(own, param.shape[0]) for name, own in state.items()}
        if param not in self._stacks or not self._has_stepped():
            return {}
        per_rank, whole = len(self._stacks[param]) // self.world_size, {}
        for name, shape in state_shapes(param, group["beta2"]).items():
            padded = torch.zeros(per_rank, *shape, dtype=param.dtype, device=param.device)
            if name in state:  # a rank beyond the last matrix has none
                padded[: len(state[name])] = state[name]
            whole[name] = self._gathered(padded, len(group["params"]))
        return whole

    def load_state(self, group: dict[str, Any], param: Tensor, whole: dict[str, Tensor]) -> None:
        """Take this rank's share of what `whole_state` said, on however many ranks; copied."""
        share: Any = ...
        if group["kind"] == "muon":
            per_rank = -(-len(group["params"]) // self.world_size)
            share = slice(self.rank * per_rank, (self.rank + 1) * per_rank)
        elif self._sharded(param):
            rows = param.shape[0] // self.world_size
            share = slice(self.rank * rows, (self.rank + 1) * rows)
        state: dict[str, Tensor] = self.state[param]
        state.clear()
        for name, tensor in whole.items():
            if tensor[share].numel():  # a rank beyond the last matrix has none
                state[name] = tensor[share].to(param.device, copy=True)

    def _has_stepped(self) -> bool:
        return any(group.get("step") for group in self.param_groups)

    def _gathered(self, own: Tensor, num_rows: int) -> Tensor:
        """The ranks' shares one after the other, what fills them up to equal size dropped."""
        whole = own.new_empty((len(own) * self.world_size, *own.shape[1:]))
        all_gather(whole, own.contiguous(), group=self.process_group)
        return whole[:num_rows]

    def _start(self, collective: Any, *tensors: Tensor) -> dist.Work:
        work: dist.Work = collective(*tensors, group=self.process_group, async_op=True)
        return work

    def _average(self, grads: list[Tensor]) -> None:
        """Sum over ranks -> mean; gloo has no averaging reduction."""
        if self.world_size > 1:
            torch._foreach_div_(grads, self.world_size)
