"""What a run has collected so far, and how a resumed run finds it again in its event log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.host.circumstances import Circumstances
from bench.host.clock import Ledger
from bench.records.events import EventLog, read_events
from bench.training.checkpoint import CARRIED, RunState


@dataclass
class RunProgress:
    """Grows with the run; every number in it is finite."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    logged: list[tuple[int, float]] = field(default_factory=list)  # (step, official seconds)
    bpbs: list[tuple[int, float]] = field(default_factory=list)
    num_events: int = 0
    carried_s: dict[str, float] = field(default_factory=dict)  # by ledger category, of earlier processes
    carried_dispatches: dict[str, int] = field(default_factory=dict)  # of earlier processes
    num_resumes: int = 0
    diverged_at: int | None = None
    diverged_because: str = ""

    @property
    def carried_official_s(self) -> float:
        """Official seconds of earlier processes."""
        return self.carried_s.get("train", 0.0) + self.carried_s.get("data_wait", 0.0)

    def add_steps(self, step: int, losses: list[float], official_s: float) -> float:
        """Take in the steps up to `step`; returns the seconds that each took."""
        before_s = self.logged[-1][1] if self.logged else 0.0
        self.step = step
        self.losses += losses
        self.logged.append((step, official_s))
        return (official_s - before_s) / len(losses)

    def dispatches(self, of_this_process: Mapping[str, int]) -> dict[str, int]:
        """How often each implementation ran in the whole run."""
        return dict(Counter(self.carried_dispatches) + Counter(of_this_process))

    def state(
        self,
        plan_sha256: str,
        seed: int,
        text_sha256: str,
        circumstances: Circumstances,
        log: EventLog,
        ledger: Ledger,
        dispatches: dict[str, int],
    ) -> RunState:
        """What a checkpoint made now has to say of the run."""
        spent_s = {name: ledger.running_total(name) + self.carried_s.get(name, 0.0) for name in CARRIED}
        return RunState(
            step=self.step,
            plan_sha256=plan_sha256,
            seed=seed,
            text_sha256=text_sha256,
            circumstances=circumstances,
            events_bytes=log.num_bytes,
            events_tip=log.tip,
            seconds=spent_s,
            num_resumes=self.num_resumes,
            dispatches=dispatches,
        )


def read_progress(path: Path, state: RunState) -> RunProgress:
    """What the events up to a checkpoint say; that they lead to it is for `EventLog` to check."""
    progress = RunProgress(
        step=state.step,
        carried_s=state.seconds,
        carried_dispatches=state.dispatches,
        num_resumes=state.num_resumes + 1,
    )
    data = path.read_bytes() if path.is_file() else b""
    for event in read_events(data[: state.events_bytes], str(path)):
        progress.num_events += 1
        if event.key == "step":
            progress.losses += event.value["losses"]
            progress.logged.append((event.value["step"], event.value["official_s"]))
        elif event.key == "eval_accuracy":
            progress.bpbs.append((event.value["step"], event.value["val_bpb"]))
    return progress


@contextmanager
def open_log(path: Path, resume_at: tuple[int, str] | None) -> Iterator[EventLog]:
    """A run's event log, closed whatever happens; `resume_at` as in `EventLog`."""
    log = EventLog(path, resume_at)
    try:
        yield log
    except BaseException:
        with suppress(OSError):  # the first fault is the one to report: closing on a full disk fails as well
            log.close()
        raise
    log.close()
