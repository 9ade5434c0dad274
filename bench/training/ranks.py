"""The processes of one run: which of them this is, and what they tell each other."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bench.errors import DataError, Interrupted, PlanRefused

Value = TypeVar("Value")

# One rank may prepare data or prove kernels while the others wait; that a rank has died the launcher sees.
TIMEOUT = timedelta(hours=2)
# A rank that lost another waits for the launcher to end it: so the other's exit code is seen first.
GRACE_S = 20.0


class Ranks(NamedTuple):
    """This process among those of its run; by default the only one.

    What is told goes through the host's memory (gloo), so that it needs no free device.

    Attributes:
        rank: its place, from 0; the first one owns the record.
        local_rank: its place on its machine, and the number of its device.
        nodes: machines of the run.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    local_rank: int = 0
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank logs, saves, proves and records."""
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Processes on one machine."""
        return self.size // self.nodes

    def settings(self) -> dict[str, str]:
        """What a record says of them: nothing of a lone process."""
        if self.size == 1:
            return {}
        backend = dist.get_backend_config(self.group)
        return {"world_size": str(self.size), "nodes": str(self.nodes), "process_group": backend}

    def share(self, value: Value) -> Value:
        """The first rank's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, self.group, device=torch.device("cpu"))
        return box[0]

    def require_alike(self, value: str, what: str) -> None:
        """Stop a rank whose value is not the first one's.

        Raises:
            DataError: it is another.
        """
        if self.share(value) != value:
            hint = "check out one commit and install one set of packages on every machine"
            raise DataError(f"rank {self.rank} has other {what} than the first rank", hint)

    def agreed(self, number: float) -> float:
        """The first rank's number; quicker than `share`."""
        told = torch.tensor(number, dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(told, 0, self.group)
        return told.item()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, on the values' device."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
            values = values / self.size
        return values

    def totals(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks, in float64."""
        summed = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(summed, group=self.group)
        return summed.tolist()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        found = torch.tensor(number, dtype=torch.int64)
        if self.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found.item())

    def wait(self) -> None:
        """Until every rank is here."""
        self.totals(0.0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank, then the first of each other machine, then the rest: a file is made once a disk."""
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(turn, 2):
            self.wait()


ALONE = Ranks()


@contextmanager
def joined(environment: Mapping[str, str], world_size: int) -> Iterator[Ranks]:
    """The ranks of a run of `world_size` processes; `environment` as torchrun sets it.

    Raises:
        PlanRefused: another number of processes was started, or they cannot reach each other.
        Interrupted: another rank was lost.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != world_size:
        raise PlanRefused(
            f"the track trains on {world_size} device(s), {started} process(es) were started",
            "`bench launch` starts one on each",
        )
    if world_size == 1:
        yield ALONE
        return
    # Python's handlers do not run while a rank waits in a collective: the launcher's signal has to end it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    ranks = _join(environment, world_size)
    try:
        yield ranks
    except RuntimeError as error:
        if not _is_of_a_lost_rank(error):
            raise
        time.sleep(GRACE_S)
        raise Interrupted(
            f"rank {ranks.rank} lost another rank: {str(error).splitlines()[0]}",
            "`bench launch` with --resume goes on from the newest checkpoint",
        ) from error
    dist.destroy_process_group()


def _join(environment: Mapping[str, str], world_size: int) -> Ranks:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        ranks = Ranks(
            rank=dist.get_rank(),
            size=world_size,
            group=dist.group.WORLD,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            nodes=int(environment.get("GROUP_WORLD_SIZE", "1")),
        )
        ranks.wait()
    except (RuntimeError, ValueError) as error:
        raise PlanRefused(
            f"{world_size} processes cannot reach each other: {str(error).splitlines()[0]}",
            "start them with `bench launch`; over machines, --rendezvous must name one that all reach",
        ) from error
    return ranks


def _is_of_a_lost_rank(error: RuntimeError) -> bool:
    """gloo has no class of its own for a connection that the other side closed."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
