"""Starts a run's processes under torchrun's agent, one a device, and says how they ended."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench.errors import Interrupted, PlanRefused

RESUME = "`bench launch` with --resume goes on from the newest checkpoint"


class Place(NamedTuple):
    """This machine among those of the run; `rendezvous` is the first machine's HOST:PORT."""

    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None


def launch(words: Sequence[str], world_size: int, place: Place, environment: MutableMapping[str, str]) -> int:
    """Run `python -m bench WORDS` as the ranks of this machine, until all have ended.

    Returns 0, or the exit code of the rank that failed: it has said itself what is wrong.

    Args:
        world_size: ranks on all machines.

    Raises:
        PlanRefused: the ranks cannot be dealt to the machines, or the machines cannot find each other.
        Interrupted: a rank was killed, or all were stopped; what was saved can be resumed.
    """
    config = _config(world_size, place)
    # What failed is said once, here.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if place.nodes == 1:  # no name to resolve: a container without a network has none
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    try:
        elastic_launch(config, sys.executable)("-m", "bench", *words)
    except ChildFailedError as error:
        return _code_of({rank: each.exitcode for rank, each in error.failures.items()})
    except SignalException as error:
        raise Interrupted(f"stopped by {error.sigval.name}", RESUME) from error
    return 0


def _config(world_size: int, place: Place) -> LaunchConfig:
    per_node, rest = divmod(world_size, place.nodes)
    if rest:
        raise PlanRefused(
            f"{world_size} devices cannot be dealt to {place.nodes} machines", "choose another --nodes"
        )
    if not 0 <= place.node_rank < place.nodes:
        raise PlanRefused(
            f"--node-rank {place.node_rank}: of {place.nodes} machines", "they are counted from 0"
        )
    if place.nodes > 1 and not place.rendezvous:
        raise PlanRefused(
            f"{place.nodes} machines need a place to meet", "--rendezvous HOST:PORT, the first machine's"
        )
    alone = place.nodes == 1
    return LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=per_node,
        run_id="speedrun",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="127.0.0.1:0" if alone else str(place.rendezvous),
        rdzv_configs={} if alone else {"rank": place.node_rank},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=0,  # a restart would be part of no ledger: --resume is a person's decision
    )


def _code_of(codes: Mapping[int, int]) -> int:
    """The exit code of ranks that failed: a rank's own error is the cause, that others lost it follows."""
    own = [code for _, code in sorted(codes.items()) if code > 0 and code != Interrupted.exit_code]
    if own:
        return own[0]
    killed = [(code == -signal.SIGTERM, rank, -code) for rank, code in codes.items() if code < 0]
    if killed:  # SIGTERM is how the agent then ends the others
        _, rank, number = min(killed)
        raise Interrupted(f"rank {rank} was killed by {signal.Signals(number).name}", RESUME)
    return Interrupted.exit_code
