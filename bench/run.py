"""The conductor: recipe -> plan -> data -> train -> evaluate -> record. It owns the clock and the evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from bench.data.corpus import Corpus, open_corpus, tokenizer_for
from bench.data.loader import Batch, Loader
from bench.data.prepare import prepare
from bench.data.prepared import Prepared
from bench.errors import BenchError, Diverged, PlanRefused
from bench.evaluation.bits_per_byte import BitsPerByte, bestfit_bpb, documents_bpb
from bench.evaluation.probes import Probes, check_frozen, probe, weights_sha256
from bench.host.clock import Ledger
from bench.host.console import Console, duration
from bench.host.device import Device, configure, is_out_of_memory, open_device, out_of_memory_error
from bench.host.machine import MachineFacts, competing_processes
from bench.host.power import EnergyMeter
from bench.host.provenance import provenance
from bench.records.assemble import Measured, assemble
from bench.records.events import EventLog
from bench.records.store import next_seed_index, read, write_once
from bench.spec.plan import Plan
from bench.spec.submission import Submission
from bench.spec.track import NamedTrack, seed_values
from bench.spec.workspace import Workspace
from bench.training import checkpoint
from bench.training.build import build_trainer, loop_config, seed_stream
from bench.training.loop import CheckpointDue, EvalDue, StepsDone, Trainer, train, warm_up
from bench.training.loop import Diverged as LossDiverged
from bench.training.run_folder import run_folder

SPENT = ("train", "data_wait", "eval", "compile", "warmup", "checkpoint")


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One run, asked for: everything the conductor may not decide itself."""

    submission: Submission
    base_name: str
    track: NamedTrack
    plan: Plan
    facts: MachineFacts
    workspace: Workspace
    seed_index: int | None  # None: the lowest without a record
    resume: bool
    environment: Mapping[str, str]
    image_digest: str
    notes: list[str]  # what the reader of the record must know before reading it


@dataclass
class Progress:
    """What a run has collected so far; a resumed run starts with what its event log held."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    logged: list[tuple[int, float]] = field(default_factory=list)
    bpbs: list[tuple[int, float]] = field(default_factory=list)
    num_events: int = 0
    carried_s: dict[str, float] = field(default_factory=dict)
    num_resumes: int = 0

    @property
    def carried_official_s(self) -> float:
        """Official seconds of earlier processes."""
        return self.carried_s.get("train", 0.0) + self.carried_s.get("data_wait", 0.0)


def run(request: RunRequest, ledger: Ledger, console: Console) -> Path:
    """Carry out one run and write its record; returns the record's path.

    Raises:
        BenchError: with its exit code; a diverged run's record is written before Diverged is raised.
    """
    if request.plan.refusals:
        raise PlanRefused(request.plan.refusals[0], "`bench plan` shows the numbers")
    track, name = request.track.name, request.submission.name
    index = request.seed_index
    if index is None:
        index = next_seed_index(request.workspace.records, track, name)
    with run_folder(request.workspace.runs, track, name, index) as folder:
        return _Conductor(request, ledger, console, folder, index).conduct()


class _Conductor:
    """One run under way."""

    def __init__(self, request: RunRequest, ledger: Ledger, console: Console, folder: Path, index: int) -> None:
        self.request, self.plan, self.ledger, self.console, self.folder = request, request.plan, ledger, console, folder
        self.index = index
        self.seed = seed_values(request.track.track, index + 1)[index]
        self.progress = Progress()

    def conduct(self) -> Path:
        """The whole flow, one stage a line."""
        request, plan = self.request, self.plan
        num_competing = len(competing_processes())
        with self.ledger.span("data"):
            corpus, prepared = self._data()
        device = open_device(request.facts.device_kind)
        self.ledger.synchronize = device.synchronize
        settings = configure(device, cpu_cores=request.facts.cpu_cores, environment=request.environment)
        try:
            trainer = self._trainer(device)
            with EnergyMeter(request.environment.get("CUDA_VISIBLE_DEVICES")) as meter:
                coverage = self._train(trainer, device, prepared, meter.sample)
            scores = self._evaluate(trainer, device, prepared)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory_error(
                error, device, device_sequences=plan.device_sequences, predicted_peak_bytes=plan.predicted_peak_bytes
            ) from error
        documents, bestfit, probes = scores
        self._log("run_stop", status="ok" if documents else "diverged")
        self.log.close()
        measured = Measured(
            submission=request.submission,
            base_name=request.base_name,
            track=request.track,
            plan=plan,
            facts=request.facts,
            settings=settings,
            num_competing=num_competing,
            provenance=provenance(request.workspace.root),
            seed_index=self.index,
            seed=self.seed,
            corpus=corpus,
            prepared=prepared,
            progress=coverage,
            steps=self.progress.step,
            losses=self.progress.losses,
            logged=self.progress.logged,
            bpbs=self.progress.bpbs,
            documents=documents,
            bestfit=bestfit,
            probes=probes,
            memory=device.peak_memory(),
            energy=meter.energy,
            ledger=self.ledger.close(),
            carried_s=self.progress.carried_s,
            num_resumes=self.progress.num_resumes,
            features={},
            warnings=list(request.notes),
            events_tip=self.log.tip,
            num_events=self.progress.num_events,
            image_digest=request.image_digest,
        )
        path = write_once(request.workspace.records, assemble(measured), self.log.path.read_bytes())
        if documents is None:
            raise Diverged(
                f"the loss of step {len(self.progress.losses)} is not finite; marked record: {path}",
                "lower the learning rates, or lengthen schedule.warmup_steps",
            )
        return path

    def _data(self) -> tuple[Corpus, Prepared]:
        recipe, workspace, workers = self.plan.recipe, self.request.workspace, self.request.facts.cpu_cores
        self.console.line(f"data: {recipe.data.dataset}, {recipe.model.vocab_size:,}-token vocabulary")
        corpus = open_corpus(
            recipe.data.dataset,
            workspace.data,
            validation_bytes=recipe.eval.validation_bytes,
            shards=recipe.data.shards,
            workers=workers,
        )
        tokenizer = tokenizer_for(corpus, recipe.model.vocab_size, workspace.data, recipe.data.tokenizer_chars)
        return corpus, prepare(corpus, tokenizer, workspace.data, workers=workers)

    def _trainer(self, device: Device) -> Trainer:
        """Build, restore a checkpoint where asked, compile and warm up on synthetic tokens."""
        plan = self.plan
        with self.ledger.span("warmup"):
            dtype = device.compute_dtype(plan.recipe.precision.compute)
            device.seed_everything(seed_stream(self.seed, "torch"))
            trainer = build_trainer(plan, device.torch_device, dtype, self.seed)
        resume_at = self._restore(trainer) if self.request.resume else None
        self.log = EventLog(self.folder / "events.jsonl", resume_at)
        if resume_at is None:
            self._log("run_start", recipe=self.request.submission.sha256, plan=plan.sha256, seed=self.seed)
        self.console.line("compiling (kept for the next run)" if plan.compiled else "warming up")
        shape = (plan.device_sequences, plan.model.sequence_length)
        for category in ("compile", "warmup") if plan.compiled else ("warmup",):
            with self.ledger.span(category):
                warm_up(trainer, *shape, device.torch_device)
        return trainer

    def _restore(self, trainer: Trainer) -> tuple[int, str] | None:
        with self.ledger.span("checkpoint"):
            found = checkpoint.newest_whole(self.folder, self.plan.sha256, self.seed)
            if found is None:
                self.console.line("no checkpoint: starting from step 0")
                return None
            state, tensors = found
            checkpoint.restore(tensors, trainer.model, trainer.optimizer)
            self.progress = read_progress(self.folder / "events.jsonl", state)
            self.console.line(f"resuming after step {state.step}")
        return state.events_bytes, state.events_tip

    def _train(self, trainer: Trainer, device: Device, prepared: Prepared, sample: Callable[[], None]) -> object:
        plan = self.plan
        with Loader(
            prepared,
            plan.model.sequence_length,
            plan.device_sequences,
            plan.accumulation,
            rank=0,
            world_size=1,
            seed=seed_stream(self.seed, "data"),
            device_pin=device.is_pinned_memory_allowed,
        ) as loader:
            loader.seek(self.progress.step)
            events = train(
                trainer, self._batches(loader, device), loop_config(plan), self._total_steps, self.progress.step
            )
            while True:
                with self.ledger.span("train"):
                    event = next(events, None)
                if event is None:
                    break
                if isinstance(event, StepsDone):
                    self._on_steps(event)
                    device.sample_memory()
                    sample()
                elif isinstance(event, EvalDue):
                    with self.ledger.span("eval"):
                        self._score(trainer, device, prepared)
                elif isinstance(event, CheckpointDue):
                    self._checkpoint(trainer)
                elif isinstance(event, LossDiverged):
                    self._log("diverged", step=event.step)
                    break
            return loader.progress()

    def _batches(self, loader: Loader, device: Device) -> Iterator[Batch]:
        while True:
            with self.ledger.span("data_wait", synchronized=False):
                batch = next(loader).to(device.torch_device)
            yield batch

    def official_s(self) -> float:
        """Official seconds so far, earlier processes of a resumed run included."""
        return self.ledger.running_total("train", "data_wait") + self.progress.carried_official_s

    def _total_steps(self, step: int) -> float:
        """Steps of the whole run: the plan's, or under a time horizon what the time left will take."""
        budget_s = self.plan.recipe.horizon.seconds
        if budget_s is None:
            return self.plan.iterations
        spent_s = self.official_s()
        if step < 3:  # the first steps say little about the rest
            return max(self.plan.iterations, step + 1)
        left = (budget_s - spent_s) / (spent_s / step)
        return step + left if left > 0.5 else step

    def _on_steps(self, event: StepsDone) -> None:
        progress, total = self.progress, self._total_steps(event.step)
        seconds = self.official_s()
        step_s = (seconds - (progress.logged[-1][1] if progress.logged else 0.0)) / len(event.losses)
        progress.step = event.step
        progress.losses += event.losses
        progress.logged.append((event.step, seconds))
        self._log(
            "step", step=event.step, losses=event.losses, official_s=seconds, learning_rate=event.scales.learning_rate
        )
        left_s = (total - event.step) * step_s
        bpb = f"  bpb {progress.bpbs[-1][1]:.4f}" if progress.bpbs else ""
        self.console.progress(
            f"step {event.step}/{total:.0f}  loss {event.losses[-1]:.4f}{bpb}  "
            f"{self.plan.batch_tokens / step_s:,.0f} tok/s  {duration(max(left_s, 0.0))} left",
            is_last=event.step >= total,
        )

    def _score(self, trainer: Trainer, device: Device, prepared: Prepared) -> BitsPerByte:
        result = documents_bpb(trainer.model, prepared, self.plan.device_sequences, device.torch_device)
        self.progress.bpbs.append((self.progress.step, result.value))
        self._log("eval_accuracy", step=self.progress.step, val_bpb=result.value, nats=result.nats)
        return result

    def _evaluate(
        self, trainer: Trainer, device: Device, prepared: Prepared
    ) -> tuple[BitsPerByte | None, BitsPerByte | None, Probes | None]:
        """Final scores under probes; nothing is scored of a diverged run. The final weights are kept."""
        if not self.progress.losses or not math.isfinite(self.progress.losses[-1]):
            return None, None, None
        self._checkpoint(trainer)
        self.console.line("evaluating")
        with self.ledger.span("eval"):
            model, torch_device = trainer.model, device.torch_device
            probes = probe(model, torch_device, seed_stream(self.seed, "probe"))
            documents = self._score(trainer, device, prepared)
            bestfit = bestfit_bpb(
                model, prepared, self.plan.device_sequences, prepared.facts.validation.num_tokens, torch_device
            )
            check_frozen(probes.weights_sha256, weights_sha256(model))
        return documents, bestfit, probes

    def _checkpoint(self, trainer: Trainer) -> None:
        with self.ledger.span("checkpoint"):
            self.log.sync()
            spent = {name: self.ledger.running_total(name) for name in SPENT}
            state = checkpoint.RunState(
                step=self.progress.step,
                plan_sha256=self.plan.sha256,
                seed=self.seed,
                events_bytes=self.log.num_bytes,
                events_tip=self.log.tip,
                seconds={name: spent[name] + self.progress.carried_s.get(name, 0.0) for name in SPENT},
                num_resumes=self.progress.num_resumes,
            )
            checkpoint.save(self.folder, trainer.model, trainer.optimizer, state)

    def _log(self, key: str, **value: object) -> None:
        self.log.append(key, self.ledger.running_total(*SPENT, "import", "data", "other"), **value)
        self.progress.num_events += 1


def read_progress(path: Path, state: checkpoint.RunState) -> Progress:
    """What the events up to a checkpoint say.

    Raises:
        VerificationFailed: the log does not lead to the checkpoint.
    """
    from bench.records.events import read_events

    progress = Progress(step=state.step, carried_s=state.seconds, num_resumes=state.num_resumes + 1)
    for event in read_events(path.read_bytes()[: state.events_bytes], path.name):
        progress.num_events += 1
        if event.key == "step":
            progress.losses += event.value["losses"]
            progress.logged.append((event.value["step"], event.value["official_s"]))
        elif event.key == "eval_accuracy":
            progress.bpbs.append((event.value["step"], event.value["val_bpb"]))
    return progress
