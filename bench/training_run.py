"""Training under way: the loop's events carried out, timed, logged, scored and saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.data.loader import Batch, Loader
from bench.data.loader import Progress as Coverage
from bench.data.prepared import Prepared
from bench.evaluation.bits_per_byte import BitsPerByte, documents_bpb
from bench.evaluation.probes import weights_sha256
from bench.host.circumstances import Circumstances
from bench.host.clock import CATEGORIES, Ledger
from bench.host.console import Console
from bench.host.device import Device
from bench.records.events import EventLog
from bench.records.progress import RunProgress
from bench.spec.plan import Plan
from bench.training import checkpoint
from bench.training.build import loop_config, open_loader
from bench.training.horizon import steps_within
from bench.training.loop import (
    NOT_FINITE,
    CheckpointDue,
    Diverged,
    EvalDue,
    Event,
    StateDue,
    StepsDone,
    Trainer,
    train,
)
from bench.training.ranks import Ranks
from bench.training.segments import segments
from kernels.counting import dispatches

REPLAY_FOLDER = "replay"


class TrainingRun:
    """One run's training, between its warm-up and its record.

    Args:
        folder: the run's own, for checkpoints.
        progress: empty, or that of the processes this one continues.
        dispatched_before: what `kernels.counting.dispatches` said before anything of the run ran.
        ranks: who shares the run; each carries out every event, the first one alone writes.
    """

    log: EventLog

    def __init__(
        self,
        *,
        ranks: Ranks,
        plan: Plan,
        seed: int,
        folder: Path,
        device: Device,
        prepared: Prepared,
        begun: Circumstances,
        progress: RunProgress,
        ledger: Ledger,
        console: Console,
        dispatched_before: dict[str, int],
    ) -> None:
        self.ranks, self.plan, self.seed, self.folder, self.device = ranks, plan, seed, folder, device
        self.prepared, self.begun = prepared, begun
        self.progress, self.ledger, self.console = progress, ledger, console
        self.dispatched_before = dispatched_before
        self.saved_step = progress.step

    def train(self, trainer: Trainer, sample: Callable[[], None]) -> Coverage:
        """Every step that is left; `sample` is called after those whose losses were read back."""
        plan, first = self.plan, self.progress.step
        if not first:
            self._note_state(trainer)
        with open_loader(plan, self.prepared, self.seed, self.device, self.ranks) as loader:
            loader.seek(first)
            batches, mean = self._batches(loader), self.ranks.mean
            self.ranks.wait()  # for the slowest to compile
            events = train(trainer, batches, loop_config(plan), self._total_steps, first, mean)
            while True:
                with self.ledger.span("train"):
                    event = next(events, None)
                if event is None:
                    break
                self._carry_out(event, trainer, sample)
                if self.progress.diverged_at is not None:
                    break
            return loader.progress()

    def _carry_out(self, event: Event, trainer: Trainer, sample: Callable[[], None]) -> None:
        if isinstance(event, StepsDone):
            self._on_steps(event)
            self.device.sample_memory()
            sample()
            return
        if isinstance(event, EvalDue):
            with self.ledger.span("eval"):
                self.score(trainer)
        elif isinstance(event, StateDue):
            self._note_state(trainer)
        elif isinstance(event, CheckpointDue):
            self.save(trainer)
        elif isinstance(event, Diverged):
            self._on_divergence(event.step, event.reason)
        self.ranks.wait()  # off the clock, or the next step would wait for the first rank's files

    def _batches(self, loader: Loader) -> Iterator[Batch]:
        while True:
            with self.ledger.span("data_wait", synchronized=False):
                batch = next(loader).to(self.device.torch_device)
            yield batch

    def _official_s(self) -> float:
        """Official seconds so far, earlier processes of a resumed run included."""
        return self.ledger.running_total("train", "data_wait") + self.progress.carried_official_s

    def _total_steps(self, step: int) -> float:
        """Steps of the whole run: the plan's, or under a time horizon what the time left will take."""
        budget_s = self.plan.recipe.horizon.seconds
        if budget_s is None:
            return self.plan.iterations
        total = steps_within(budget_s, step, self._official_s(), estimate=self.plan.iterations)
        return self.ranks.agreed(total)

    def _on_steps(self, event: StepsDone) -> None:
        progress, total = self.progress, self._total_steps(event.step)
        seconds = self._official_s()
        step_s = progress.add_steps(event.step, event.losses, seconds)
        self.write(
            "step",
            step=event.step,
            losses=event.losses,
            official_s=seconds,
            learning_rates=[scales.learning_rate for scales in event.scales],
            totals=event.totals,
            sequences=[
                self.plan.sequences_after(step + 1)
                for step in range(event.step - len(event.losses), event.step)
            ],
        )
        self.console.step(
            event.step,
            total,
            event.losses[-1],
            bpb=progress.bpbs[-1][1] if progress.bpbs else None,
            tokens_per_s=self.plan.tokens_of(event.step - 1) / step_s,
            left_s=(total - event.step) * step_s,
        )

    def _on_divergence(self, step: int, reason: str = NOT_FINITE) -> None:
        self.progress.step = self.progress.diverged_at = step
        self.progress.diverged_because = reason
        self.write("diverged", step=step, reason=reason)

    def score(self, trainer: Trainer) -> BitsPerByte | None:
        """Validation as of this step; a value that is not finite is a divergence, and None."""
        step = self.progress.step
        rows, device = self.plan.device_sequences, self.device.torch_device
        result = documents_bpb(trainer.model, self.prepared, rows, device, ranks=self.ranks)
        if not math.isfinite(result.value):
            self._on_divergence(step)
            return None
        self.progress.bpbs.append((step, result.value))
        self.write("eval_accuracy", step=step, val_bpb=result.value, nats=result.nats)
        return result

    def _note_state(self, trainer: Trainer) -> None:
        """Log the hash of the weights where a replay may start or stop; keep the state where it starts.

        The state at step 0 need not be kept: it follows from the seed.
        """
        step = self.progress.step
        with self.ledger.span("checkpoint"):
            kept_sha256 = ""
            if step and step in {segment.start for segment in segments(self.plan.iterations)}:
                kept = self._saved(trainer, self.folder / REPLAY_FOLDER, keep=None)
                kept_sha256 = kept.tensors_sha256 if kept else ""
            weights = weights_sha256(trainer.model)
        self.write("state", step=step, weights_sha256=weights, kept_sha256=kept_sha256)

    def save(self, trainer: Trainer) -> None:
        """A checkpoint of this step, unless it is the one the run was resumed from."""
        step = self.progress.step
        if step == self.saved_step:  # resumed here: the one there is whole, to replace it would risk it
            return
        with self.ledger.span("checkpoint"):
            self._saved(trainer, self.folder, self.prepared.tokenizer_path)
        self.saved_step = step

    def _saved(
        self,
        trainer: Trainer,
        folder: Path,
        tokenizer: Path | None = None,
        keep: int | None = checkpoint.KEEP,
    ) -> checkpoint.Saved | None:
        """The checkpoint of this step, to which every rank gives its share; None where another writes it."""
        self.log.sync()
        state = self.progress.state(
            self.plan.sha256,
            self.seed,
            self.prepared.text_sha256,
            self.begun,
            self.log,
            self.ledger,
            self.dispatches(),
        )
        return checkpoint.save(folder, trainer, state, tokenizer, keep, writes=self.ranks.is_first)

    def dispatches(self) -> dict[str, int]:
        """How often each implementation ran in the run so far."""
        return self.progress.dispatches(dispatches(since=self.dispatched_before))

    def leave_out(self, made: dict[str, int]) -> None:
        """These dispatches are no part of the run."""
        self.dispatched_before = dict(Counter(self.dispatched_before) + Counter(made))

    def write(self, key: str, **value: object) -> None:
        """Append an event to the run's log; the first rank's is the run's."""
        time_s = self.ledger.running_total(*CATEGORIES) + sum(self.progress.carried_s.values())
        self.log.append(key, time_s, **value)
        self.progress.num_events += 1
