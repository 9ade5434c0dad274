"""`bench core` in a process of its own, killed and started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from bench.evaluation.core.engine import Engine
from bench.spec.workspace import Workspace
from tests import tiny
from tests.evaluation.core.test_evaluate import write_checkpoint
from tests.evaluation.core.tiny_bundle import write_bundle


def die_in_the_third_task() -> None:
    """Let the process be killed, as by the kernel, once two tasks are answered."""
    answer, calls = Engine.answer, 0

    def answering(self: Engine, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(self, *arguments)

    Engine.answer = answering  # type: ignore[method-assign]


def told(err: str) -> list[str]:
    """The tasks that the console reports as done, in order."""
    labels = ("pick", "letters", "who", "squad")
    return [line.split()[0] for line in err.split("\n") if line.split(" ")[0] in labels]


def test_a_killed_command_goes_on_with_the_task_it_was_in(tmp_path: Path) -> None:
    space = Workspace(root=tmp_path, data=tmp_path / "data")
    checkpoint, bundle = write_checkpoint(tmp_path / "run"), write_bundle(tmp_path / "bundle")
    words = ("core", str(checkpoint), "--bundle", str(bundle), "--device", "cpu")
    code, err = tiny.bench(space, *words, before=die_in_the_third_task)
    assert code == -signal.SIGKILL
    assert told(err) == ["pick", "letters"]
    code, err = tiny.bench(space, *words)
    assert (code, told(err)) == (0, ["who", "squad"])
    resumed = (tmp_path / "out").read_text()
    assert tiny.bench(space, *words)[0] == 0
    assert (tmp_path / "out").read_text() == resumed
    assert "limited" not in resumed
