"""What a step takes on several devices, from the rate of one and the bandwidth of their links.

The optimizer reduce-scatters every gradient and all-gathers every parameter (ZeRO-2; model/optimizers/
combined.py), both in the parameter's dtype and after the backward pass, so

    step = FLOPs of the step / (N x rate of one device) + (reduce-scatter + all-gather)
    each = (N - 1) / N x bytes of the parameters / bandwidth + (N - 1) x latency x collectives

with N devices in a ring, whose slowest link decides: among machines the network's share of one device. That
collectives of one group overlap with the update of another is left out: the step is an upper bound by it.
The ring's traffic is that of Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms" (2009).
"""

from __future__ import annotations

import msgspec

from bench.errors import RecipeError
from bench.spec.plan import Plan
from model.flops import bfloat16_parameters

BYTES_OF_A_NUMBER = 4  # but of those in bfloat16
# One hop of NCCL's ring inside a machine is some 5 to 10 microseconds; it decides nothing at these sizes.
LATENCY_S = 1e-5


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """What one device sends a second, in one direction; None: not declared."""

    link_bytes_per_s: float | None  # to the others of its machine
    network_bytes_per_s: float | None  # to other machines
    source: str


class Parallel(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan on `world_size` devices of `nodes` machines."""

    world_size: int
    nodes: int
    bandwidth_bytes_per_s: float
    bandwidth_source: str
    device_flops_per_s: float
    rate_source: str
    moved_bytes: int  # by each device in each of the two collectives
    compute_s: float
    reduce_scatter_s: float
    all_gather_s: float
    step_s: float
    train_s: float
    tokens_per_s: float
    efficiency: float  # of N times the rate of one


def predict(plan: Plan, nodes: int, links: Links) -> Parallel:
    """The step of a plan that was made for its `world_size`.

    Raises:
        RecipeError: a bandwidth or the rate of a device is not known.
    """
    world, machine = plan.world_size, plan.machine
    if world % nodes:
        raise RecipeError(f"--world {world} cannot be dealt to --nodes {nodes}", "choose a multiple")
    if machine.flops_per_s is None:
        raise RecipeError(
            f"no rate of {machine.device_name}: {machine.rate_source}", "run a recipe of this depth once"
        )
    rate = machine.flops_per_s / machine.device_count
    bandwidth = _bandwidth(world, nodes, links)
    collectives = len(plan.parameters)
    size = BYTES_OF_A_NUMBER * plan.parameters_total - 2 * bfloat16_parameters(plan.model)
    moved = size * (world - 1) // world
    collective_s = moved / bandwidth + (world - 1) * LATENCY_S * collectives if world > 1 else 0.0
    compute_s = plan.batch_tokens * plan.flops_per_token / (world * rate)
    step_s = compute_s + 2 * collective_s
    return Parallel(
        world_size=world,
        nodes=nodes,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_source=links.source,
        device_flops_per_s=rate,
        rate_source=machine.rate_source,
        moved_bytes=moved,
        compute_s=compute_s,
        reduce_scatter_s=collective_s,
        all_gather_s=collective_s,
        step_s=step_s,
        train_s=step_s * plan.iterations,
        tokens_per_s=plan.batch_tokens / step_s,
        efficiency=compute_s / step_s,
    )


def _bandwidth(world: int, nodes: int, links: Links) -> float:
    """Of the ring's slowest link."""
    needed = {"--link": links.link_bytes_per_s} if world > nodes else {}
    needed |= {"--network": links.network_bytes_per_s} if nodes > 1 else {}
    for option, bandwidth in needed.items():
        if bandwidth is None:
            raise RecipeError(
                f"{option}: no bandwidth is declared for these devices", f"{option} GIGABYTES a second"
            )
    return min((bandwidth for bandwidth in needed.values() if bandwidth), default=float("inf"))


def parallel_table(one: Parallel) -> str:
    """The prediction as lines a person reads, below the plan's table."""
    rows = [
        ("devices", f"{one.world_size}", f"of {one.nodes} machine(s)"),
        ("compute", _time(one.compute_s), f"at {one.device_flops_per_s:.4g} FLOP/s a device"),
        ("reduce-scatter", _time(one.reduce_scatter_s), f"{one.moved_bytes / 1e9:.3f} GB a device"),
        (
            "all-gather",
            _time(one.all_gather_s),
            f"at {one.bandwidth_bytes_per_s / 1e9:.4g} GB/s: {_why(one)}",
        ),
        ("step", _time(one.step_s), "their sum: nothing overlaps"),
        ("training", f"{one.train_s:,.0f} s", "iterations x step"),
        ("speed", f"{one.tokens_per_s:,.0f} tok/s", f"{one.efficiency:.1%} of {one.world_size} x one device"),
    ]
    lines = [f"  {name:<16} {value:>16}  {why}" for name, value, why in rows]
    return "\n".join(["on several devices", *lines])


def _why(one: Parallel) -> str:
    return one.bandwidth_source if one.world_size > 1 else "one device sends none"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1.0 else f"{seconds:,.2f} s"
