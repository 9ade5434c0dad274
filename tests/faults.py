"""Faults for processes under test: killed, signalled or out of disk at a chosen moment."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from bench.training import checkpoint, loop

# Calls of batch_loss by the tiny recipe: one of the warm-up, then so many a step.
WARM_UP_CALLS = 1
MICRO_STEPS = 2
CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "open"})


def kill_at_call(event: str, number: int) -> None:
    """SIGKILL just before the `number`-th call of this audit event."""
    left = number

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if name == event:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_change(root: str, number: int) -> None:
    """SIGKILL just before the `number`-th change of a file or folder below `root`."""
    left = number

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if name not in CHANGES or not str(arguments[0]).startswith(root):
            return
        if name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def signal_at_step(number: int, step: int) -> None:
    """Send this process a signal in the middle of a training step (1 is the first)."""
    call = WARM_UP_CALLS + MICRO_STEPS * step  # the last of the step
    _before(loop, "batch_loss", call, lambda: os.kill(os.getpid(), number))


def full_disk_at_save(save: int, limit_bytes: int) -> None:
    """Let no file grow beyond `limit_bytes` from the `save`-th checkpoint on, those for replays too."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = (limit_bytes, hard)
    _before(checkpoint, "save", save, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))


def _before(module: Any, name: str, call: int, fault: Callable[[], None]) -> None:
    """Have `fault` happen before the `call`-th call of a module's function."""
    real, left = getattr(module, name), call

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            fault()
        return real(*arguments, **options)

    setattr(module, name, faulty)
