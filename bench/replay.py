"""Replays: segments of a recorded run, drawn by a nonce, are executed again and compared with its log.

On a CPU, and on CUDA where the run was deterministic, every loss and the weights at the end must be the same
bits. Elsewhere the losses must be equivalent: mean difference within a margin by two one-sided tests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from bench.data.prepared import Prepared
from bench.data.text import text_of
from bench.errors import DataError, PlanRefused, VerificationFailed
from bench.evaluation.probes import weights_sha256
from bench.experiments.distributions import t_quantile
from bench.host.device import Device, configure, open_device
from bench.host.facts import MachineFacts
from bench.host.planning import Planned
from bench.records.events import read_events
from bench.records.replayed import Replay, ReplayedSegment, record_sha256
from bench.records.schema import Record
from bench.records.store import StoredRecord
from bench.records.trace import Drawable, Step, Trace, trace_of
from bench.spec.plan import Plan
from bench.spec.workspace import Workspace
from bench.training import checkpoint
from bench.training.build import build_trainer, open_loader, seed_stream, steps_only
from bench.training.loop import StepsDone, Trainer, train
from bench.training.ranks import ALONE, Ranks
from bench.training.run_folder import folder_path
from bench.training_run import REPLAY_FOLDER

# Nats a token: a difference of the mean loss over a segment that is no other training. Six times the
# deviation of nanochat's final score over 20 seeds (its PR 807: 0.00023 bpb, with 4.8 bytes a token 0.0008
# nats); what one GPU gives against itself was not measured yet.
MARGIN = 0.005
LEVEL = 0.05


class Rerun(NamedTuple):
    """What executes a run's steps again."""

    plan: Plan
    seed: int
    device: Device
    prepared: Prepared
    kept: Path  # folder of the states that the run kept
    trace: Trace
    is_bitwise: bool
    ranks: Ranks = ALONE

    def segment(self, segment: Drawable) -> ReplayedSegment:
        """One segment, executed again.

        Raises:
            DataError: the state it starts from is not there, or is not the one the log names.
        """
        trainer = self._trainer_at(segment.start)
        problems = self._state_problems(segment.start, trainer)
        differences = []
        for done in self._steps(trainer, segment):
            logged = self.trace.steps.get(done.step)
            if logged is None:
                raise VerificationFailed(f"the log says nothing of step {done.step}", "it was edited or cut")
            differences.append(done.losses[0] - logged.loss)
            problems += self._step_problems(done, logged)
        problems += self._end_problems(segment.stop, trainer, differences)
        return ReplayedSegment(
            start=segment.start,
            stop=segment.stop,
            compared="bitwise" if self.is_bitwise else "equivalence",
            worst_difference=max(map(abs, differences)),
            problems=problems,
        )

    def _trainer_at(self, step: int) -> Trainer:
        self.device.seed_everything(seed_stream(self.seed, "torch"))
        dtype = self.device.compute_dtype(self.plan.recipe.precision.compute)
        trainer = build_trainer(self.plan, self.device.torch_device, dtype, self.seed, self.ranks.group)
        if step:
            path = self.kept / f"step-{step:08d}"
            state = checkpoint.whole_state(path)
            if state is None or state.tensors_sha256 != self.trace.states[step].kept_sha256:
                raise DataError(
                    f"{path} is missing or not the state that the log names",
                    "a replay needs the run's own folder; bring .runs over, or run the recipe again",
                )
            checkpoint.restore(load_file(path / checkpoint.TENSORS_FILE), trainer)
        return trainer

    def _steps(self, trainer: Trainer, segment: Drawable) -> list[StepsDone]:
        plan = self.plan
        with open_loader(plan, self.prepared, self.seed, self.device, self.ranks) as loader:
            loader.seek(segment.start)
            batches = (batch.to(self.device.torch_device) for batch in loader)
            alone = steps_only(plan)
            events = train(trainer, batches, alone, self._total_steps, segment.start, self.ranks.mean)
            done = list(islice(events, segment.stop - segment.start))
        if not all(isinstance(event, StepsDone) for event in done):
            raise VerificationFailed(
                f"the replay diverged after step {segment.start}, the recorded run did not",
                "the log or the state it starts from is not the run's",
            )
        return [event for event in done if isinstance(event, StepsDone)]

    def _total_steps(self, step: int) -> float:
        logged = self.trace.steps.get(step + 1)
        return logged.total if logged is not None else math.inf

    def _state_problems(self, step: int, trainer: Trainer) -> list[str]:
        if weights_sha256(trainer.model) == self.trace.states[step].weights_sha256:
            return []
        return [f"the weights at step {step} are not those that were logged"]

    def _step_problems(self, done: StepsDone, logged: Step) -> list[str]:
        found: list[tuple[str, float, float]] = [
            ("learning rate", done.scales[0].learning_rate, logged.learning_rate),
            ("sequences", self.plan.sequences_after(done.step), logged.sequences),
        ]
        if self.is_bitwise:
            found.append(("loss", done.losses[0], logged.loss))
        return [
            f"step {done.step}: {name} {again!r}, logged {before!r}"
            for name, again, before in found
            if again != before
        ]

    def _end_problems(self, step: int, trainer: Trainer, differences: Sequence[float]) -> list[str]:
        if self.is_bitwise:
            return self._state_problems(step, trainer)
        bound = equivalence_bound(differences)
        return [] if bound < MARGIN else [f"the mean loss may differ by {bound:.2g}, {MARGIN} is allowed"]


def equivalence_bound(differences: Sequence[float]) -> float:
    """The mean difference that two one-sided tests at 5 % cannot rule out: |mean| + t s / sqrt(m_eff).

    Neighbouring steps are alike: m_eff = m (1 - r) / (1 + r), with the correlation r of neighbours. Infinite
    for fewer than three steps, which tell nothing of their spread.
    """
    m = len(differences)
    if m < 3:
        return math.inf
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0.0:
        return abs(mean)
    neighbours = pairwise(differences)
    r = sum((a - mean) * (b - mean) for a, b in neighbours) / ((m - 1) * deviation**2)
    r = min(max(r, 0.0), 0.95)
    effective = m * (1.0 - r) / (1.0 + r)
    return abs(mean) + t_quantile(1.0 - LEVEL, m - 1) * deviation / math.sqrt(effective)


def open_rerun(
    stored: StoredRecord,
    planned: Planned,
    space: Workspace,
    environment: Mapping[str, str],
    ranks: Ranks = ALONE,
) -> Rerun:
    """What a record's segments can be executed again with, by as many ranks as the run had.

    Raises:
        PlanRefused: this machine would train something else.
        DataError: the text or its tokens are not those of the record.
        VerificationFailed: the event log does not lead to the record.
    """
    record, plan = stored.record, planned.plan
    shape = record.shape
    made = (plan.sha256, plan.world_size, plan.device_sequences, plan.accumulation)
    if made != (
        record.identity.plan_sha256,
        shape.world_size,
        shape.device_sequences,
        shape.accumulation,
    ):
        raise PlanRefused(
            f"{stored.path}: this machine, track and code plan another run",
            f"replay it on {record.machine.machine_class} at commit {record.identity.git_commit[:12]}",
        )
    trace = trace_of(read_events(stored.events_path.read_bytes(), str(stored.events_path)))
    with ranks.in_turn():
        prepared = _prepared(record, plan, planned.facts, space)
    device = open_device(planned.facts.device_kind, index=ranks.local_rank)
    is_deterministic = plan.recipe.precision.deterministic
    configure(
        device,
        cpu_cores=max(planned.facts.cpu_cores // ranks.local_size, 1),
        deterministic=is_deterministic,
        environment=environment,
    )
    ranks.mean(torch.zeros(1, device=device.torch_device))  # connects the devices
    run_of = record.identity
    kept = folder_path(space.runs, run_of.track, run_of.recipe, run_of.seed_index) / REPLAY_FOLDER
    is_bitwise = device.kind == "cpu" or is_deterministic
    return Rerun(plan, run_of.seed, device, prepared, kept, trace, is_bitwise, ranks)


def _prepared(record: Record, plan: Plan, facts: MachineFacts, space: Workspace) -> Prepared:
    recipe = plan.recipe
    corpus, prepared = text_of(recipe, space.data, facts.cpu_cores)
    found = (corpus.sha256, prepared.facts.tokenizer_sha256)
    if found != (record.data.corpus_sha256, record.data.tokenizer_sha256):
        raise DataError(
            f"{recipe.data.dataset}: this text or its tokenizer is not the record's",
            "another Python's standard library is another text; bring the record's data folder over",
        )
    return prepared


def replay(
    stored: StoredRecord, rerun: Rerun, nonce: str, count: int, machine: str, on_line: Callable[[str], None]
) -> Replay:
    """Execute `count` segments again.

    Raises:
        VerificationFailed: the log names no state to start from, or a replayed step is not in it.
        DataError: a kept state is missing.
    """
    sha256 = record_sha256(stored.record)
    drawn = rerun.trace.drawn(nonce, sha256, count)
    if not drawn:
        raise VerificationFailed(f"{stored.events_path}: notes no states", "records made now can be replayed")
    segments = []
    for segment in drawn:
        segments.append(rerun.segment(segment))
        problems = segments[-1].problems
        on_line(f"steps {segment.start + 1} to {segment.stop}: {problems[0] if problems else 'as logged'}")
        torch._dynamo.reset()  # a compiled trunk keeps its model alive
    passed = not any(segment.problems for segment in segments)
    num_steps = sum(segment.stop - segment.start for segment in segments)
    share = num_steps / stored.record.shape.steps
    how = "the same bits" if rerun.is_bitwise else "equivalent losses"
    return Replay(
        record=sha256,
        passed=passed,
        replayed=datetime.now(UTC).date().isoformat(),
        by=machine,
        says=f"{len(drawn)} segments, {num_steps} steps ({share:.1%} of the run): "
        + (how if passed else next(each.problems[0] for each in segments if each.problems)),
        nonce=nonce,
        segments=segments,
    )
