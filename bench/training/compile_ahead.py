"""Passes of loss and optimizer, compiled by a process of their own while a first run prepares.

On a CPU a first run waits for g++: before its first kernel Inductor compiles a probe of the vector
instructions (4 s) and precompiles its headers (9 s of one core; g++ 12, AVX2), then Muon's passes one by one.
Started with the run, all of that goes on beside the data and the proofs, which leave a core free: the first
step of quick came 71 and 71 s after its data were there, without this 85 (two cores; proofs 30 s, not 20).
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.host.device import configure, open_device
from bench.spec.plan import Plan
from bench.training.build import build_trainer
from model.gpt import GPT

CODE = Path(__file__).resolve().parents[2]


class Asked(NamedTuple):
    """What decides about the code that is compiled: Inductor writes a kernel for as many threads."""

    plan: Plan
    cpu_cores: int


def is_worth_a_process(asked: Asked, environment: Mapping[str, str]) -> bool:
    """Whether g++ has to compile, has compiled nothing yet, and a core and the memory for two are there."""
    cache, plan = environment.get("TORCHINDUCTOR_CACHE_DIR"), asked.plan
    if cache is None or Path(cache).exists():
        return False
    if 2 * plan.predicted_peak_bytes > plan.machine.device_memory_bytes:  # the process builds the model, too
        return False
    return plan.compiled and plan.machine.device_kind == "cpu" and asked.cpu_cores > 1


@contextmanager
def compiled_ahead(asked: Asked | None, environment: Mapping[str, str]) -> Iterator[Callable[[], object]]:
    """Where it is worth one, a process fills the compile cache; yields what waits for its end.

    What it does not bring about, and why, is left to the run: that compiles all it does not find.

    Args:
        asked: None on a rank that leaves it to another.
    """
    if asked is None or not is_worth_a_process(asked, environment):
        yield lambda: None
        return
    null = subprocess.DEVNULL
    command = [sys.executable, "-m", __name__]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=null, stderr=null, cwd=CODE, env=dict(environment)
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            pickle.dump(asked, process.stdin)
        yield process.wait
    finally:
        process.terminate()
        process.wait()


def compile_passes(asked: Asked) -> None:
    """Build what the run will build, its weights included, and have all compiled but its trunk."""
    device = open_device("cpu")
    precision = asked.plan.recipe.precision
    configure(device, cpu_cores=asked.cpu_cores, deterministic=precision.deterministic)
    dtype = device.compute_dtype(precision.compute)
    trainer = build_trainer(asked.plan, device.torch_device, dtype, seed=0)
    num_tokens = asked.plan.device_sequences * asked.plan.model.sequence_length
    _compile_loss(trainer.model, torch.zeros(num_tokens, asked.plan.width, dtype=dtype, requires_grad=True))
    trainer.optimizer.warm_up()


def _compile_loss(model: GPT, hidden_ND: Tensor) -> None:
    """For training, which wants gradients, and for evaluation, which does not."""
    targets_N = torch.zeros(len(hidden_ND), dtype=torch.int64)
    given = hidden_ND, model.head_weight(), targets_N
    loss = partial(model.kernels.linear_cross_entropy, *given, softcap=model.config.softcap)
    loss(reduction="mean").backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        loss(reduction="none")


if __name__ == "__main__":
    compile_passes(pickle.load(sys.stdin.buffer))  # the run's own, written above
