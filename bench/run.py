"""The conductor: recipe -> plan -> data -> train -> evaluate -> record. It owns clock and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import torch

from bench.data.corpus import Corpus
from bench.data.prepared import Prepared
from bench.data.text import text_of
from bench.errors import DataError, Diverged, PlanRefused, RecipeError
from bench.evaluation.bits_per_byte import BitsPerByte, bestfit_bpb
from bench.evaluation.core.phase import CorePhase, core_phase
from bench.evaluation.core.result import CoreScore
from bench.evaluation.probes import Probes, check_frozen, probe, weights_sha256
from bench.host.allocator import release_garbage
from bench.host.circumstances import GO_ON_THERE, changes_since, circumstances, refusal
from bench.host.clock import Ledger
from bench.host.collector import collected_by_hand
from bench.host.console import Console
from bench.host.device import Device, configure, open_device
from bench.host.facts import MachineFacts
from bench.host.machine import watch_others
from bench.host.power import EnergyMeter
from bench.proving.compiled import error_ratios
from bench.proving.gate import compiled_proof_for, proofs_for
from bench.proving.proof import CompiledProof, Proof
from bench.records.assemble import Measured, Outcome, assemble
from bench.records.events import EventLog
from bench.records.progress import RunProgress, open_log, read_progress
from bench.records.schema import decode, encode
from bench.records.store import folder_of, write_once
from bench.spec.plan import Plan
from bench.spec.submission import Submission
from bench.spec.track import NamedTrack, seed_value
from bench.spec.workspace import Workspace
from bench.training import checkpoint
from bench.training.activity import activity
from bench.training.build import build_trainer, seed_stream
from bench.training.compile_ahead import Asked, compiled_ahead
from bench.training.loop import Trainer, warm_up
from bench.training.out_of_memory import memory_explained
from bench.training.ranks import Ranks, joined
from bench.training.run_folder import folder_path, held, require_folder
from bench.training_run import REPLAY_FOLDER, TrainingRun
from kernels.counting import dispatches

EVENTS_FILE = "events.jsonl"


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One run, asked for: everything the conductor may not decide itself."""

    submission: Submission
    track: NamedTrack
    plan: Plan
    facts: MachineFacts
    workspace: Workspace
    seed_index: int  # into the track's seeds
    resume: bool
    environment: Mapping[str, str]
    image_digest: str
    notes: list[str]  # what the reader of the record must know before reading it


def run(request: RunRequest, ledger: Ledger, console: Console) -> Path | None:
    """Carry out one run and write its record; returns the record's path, or None on any rank but the first.

    Raises:
        BenchError: with its exit code; a diverged run's record is written before Diverged is raised.
    """
    if request.plan.refusals:
        raise PlanRefused(request.plan.refusals[0], "`bench plan` shows the numbers")
    with joined(request.environment, request.plan.world_size) as ranks:
        # What the machine's free memory or another process could make differ, the first rank decides.
        plan, index = ranks.share((request.plan, request.seed_index))
        request = msgspec.structs.replace(request, plan=plan, seed_index=index)
        console = console if ranks.is_first else Console(quiet=True)
        return _run(request, ledger, console, ranks)


def _run(request: RunRequest, ledger: Ledger, console: Console, ranks: Ranks) -> Path | None:
    track, name, records = request.track.name, request.submission.name, request.workspace.records
    index = request.seed_index
    if index < 0:
        raise RecipeError(f"--seed {index}: seeds are counted from 0", "leave it out for the next one")
    folder = folder_path(request.workspace.runs, track, name, index)
    if ranks.is_first:
        require_folder(folder_of(records, track, name))  # before hours of training, not after
    with held(folder) if ranks.is_first else nullcontext():
        ranks.wait()  # until the first one holds it
        cpu_cores = max(request.facts.cpu_cores // ranks.local_size, 1)
        asked = Asked(request.plan, cpu_cores) if ranks.is_first else None
        with compiled_ahead(asked, request.environment) as wait_for_compiled:
            return _Conductor(request, ledger, console, folder, ranks, cpu_cores, wait_for_compiled).conduct()


class _Conductor:
    """One run under way."""

    corpus: Corpus
    prepared: Prepared
    core: CorePhase | None
    device: Device
    settings: dict[str, str]
    proofs: list[Proof]
    compiled: CompiledProof | None
    dispatched_before: dict[str, int]
    training: TrainingRun

    def __init__(
        self,
        request: RunRequest,
        ledger: Ledger,
        console: Console,
        folder: Path,
        ranks: Ranks,
        cpu_cores: int,
        wait_for_compiled: Callable[[], object],
    ) -> None:
        self.ranks, self.request, self.plan = ranks, request, request.plan
        self.cpu_cores, self.wait_for_compiled = cpu_cores, wait_for_compiled
        self.ledger, self.console = ledger, console
        self.folder, self.index = folder, request.seed_index
        self.seed = seed_value(request.track.track, self.index)
        self.begun = circumstances(request.facts, request.workspace.root)
        ranks.require_alike(self.begun.sources_sha256, "code")
        self.progress = RunProgress()
        self.num_competing = 0

    def conduct(self) -> Path | None:
        """The whole flow, one stage a line."""
        environment = self.request.environment
        others = watch_others(with_siblings=self.ranks.size == 1)
        with self.ledger.span("data"), self.ranks.in_turn():
            self._open_data()
        self.num_competing = len(others())
        self._open_device()
        with self.ledger.span("proof"), self.ranks.in_turn():
            self._prove()
        with memory_explained(self.device, self.plan):
            trainer = self._trainer()
            resume_at = self._restore(trainer) if self.request.resume else None
            if resume_at is None and self.ranks.is_first:
                checkpoint.clear(self.folder)
                checkpoint.clear(self.folder / REPLAY_FOLDER)
            self.training = self._training()
            with self._open_log(resume_at) as self.training.log:
                if resume_at is None:
                    recipe = self.request.submission.sha256
                    self.training.write("run_start", recipe=recipe, plan=self.plan.sha256, seed=self.seed)
                self._warm_up(trainer)
                self.compiled = self._prove_compiled(trainer)
                collector = collected_by_hand(self.plan.recipe.compile.manual_gc_every_steps)
                with collector, EnergyMeter(environment.get("CUDA_VISIBLE_DEVICES")) as meter:
                    coverage = self.training.train(trainer, meter.sample)
                documents, bestfit, probes = self._evaluate(trainer)
                core = self._score_core(trainer) if documents else None
                features = activity(self.plan, trainer, self.prepared) if documents else {}
                self.training.write("run_stop", status="ok" if documents else "diverged")
        return self._record(Outcome(coverage, meter.energy, documents, bestfit, probes, features, core))

    def _open_device(self) -> None:
        self.device = open_device(self.request.facts.device_kind, index=self.ranks.local_rank)
        self.ledger.synchronize = self.device.synchronize
        self.settings = self.ranks.settings() | configure(
            self.device,
            cpu_cores=self.cpu_cores,
            deterministic=self.plan.recipe.precision.deterministic,
            environment=self.request.environment,
        )
        self.ranks.mean(torch.zeros(1, device=self.device.torch_device))  # connects the devices

    def _open_log(self, resume_at: tuple[int, str] | None) -> AbstractContextManager[EventLog]:
        """The run's log on the first rank; the others' are for whoever looks for a fault."""
        if self.ranks.is_first:
            return open_log(self.folder / EVENTS_FILE, resume_at)
        return open_log(self.folder / f"rank-{self.ranks.rank}.jsonl", None)

    def _record(self, outcome: Outcome) -> Path | None:
        request, memory = self.request, self.device.peak_memory()
        most_bytes = self.ranks.largest(memory.bytes)
        if not self.ranks.is_first:
            return None
        measured = Measured(
            submission=request.submission,
            track=request.track,
            plan=self.plan,
            facts=request.facts,
            settings=self.settings,
            num_competing=self.num_competing,
            provenance=self.begun.code,
            seed_index=self.index,
            seed=self.seed,
            corpus=self.corpus,
            prepared=self.prepared,
            progress=self.progress,
            outcome=outcome,
            memory=msgspec.structs.replace(memory, bytes=most_bytes),
            ledger=self.ledger.close(),
            proofs=self.proofs,
            compiled=self.compiled,
            dispatches=self.training.dispatches(),
            warnings=[*request.notes, *changes_since(self.begun, request.workspace.root)],
            events_tip=self.training.log.tip,
            image_digest=request.image_digest,
        )
        record = decode(encode(assemble(measured)))  # a 0 in a float field is written as it is read: 0.0
        path = write_once(request.workspace.records, record, self.training.log.path.read_bytes())
        if self.progress.diverged_at is not None:
            raise Diverged(
                f"diverged: {self.progress.diverged_because}, at step {self.progress.diverged_at}; "
                f"marked record: {path}",
                "lower the learning rates, or lengthen schedule.warmup_steps",
            )
        return path

    def _open_data(self) -> None:
        recipe, facts = self.plan.recipe, self.request.facts
        self.core = core_phase(self.request.track.track.score, self.request.workspace.data, facts.cpu_cores)
        self.console.line(f"data: {recipe.data.dataset}, {recipe.model.vocab_size:,}-token vocabulary")
        self.corpus, self.prepared = text_of(recipe, self.request.workspace.data, facts.cpu_cores)

    def _prove(self) -> None:
        """A valid proof of every fused kernel of the plan on this device, or no training."""
        space, facts = self.request.workspace, self.request.facts
        self.proofs = proofs_for(self.plan.kernels, facts, space.root, space.proofs, self.console.line)
        release_garbage()  # the proofs' tensors must not be in the way of the run's
        self.dispatched_before = dispatches()

    def _trainer(self) -> Trainer:
        # Wrapping the model loads the compiler (1.5 s with torch 2.13), so building belongs to compiling.
        with self.ledger.span("compile" if self.plan.compiled else "warmup"):
            dtype = self.device.compute_dtype(self.plan.recipe.precision.compute)
            self.device.seed_everything(seed_stream(self.seed, "torch"))
            trainer = build_trainer(self.plan, self.device.torch_device, dtype, self.seed, self.ranks.group)
        self.settings["polar_dtype"] = str(trainer.optimizer.polar_dtype).removeprefix("torch.")
        return trainer

    def _restore(self, trainer: Trainer) -> tuple[int, str] | None:
        """Put the newest checkpoint back; where the event log then stands, or None without a checkpoint."""
        with self.ledger.span("checkpoint"):
            found = checkpoint.newest_whole(
                self.folder, self.plan.sha256, self.seed, self.prepared.text_sha256
            )
            step = -1 if found is None else found[0].step
            if self.ranks.agreed(step) != step:
                raise DataError(
                    f"rank {self.ranks.rank} finds another checkpoint in {self.folder} than the first rank",
                    "--resume over machines needs a runs folder that they share",
                )
            if found is None:
                self.console.line("no checkpoint: starting from step 0")
                return None
            state, tensors = found
            if why_not := self.ranks.share(refusal(state.circumstances, self.begun)):  # the first one's
                raise DataError(f"the checkpoint of step {state.step} {why_not}", GO_ON_THERE)
            self.begun = state.circumstances or self.begun
            checkpoint.restore(tensors, trainer)
            self.progress = read_progress(self.folder / EVENTS_FILE, state)
            self.console.line(f"resuming after step {state.step}")
        return state.events_bytes, state.events_tip

    def _training(self) -> TrainingRun:
        return TrainingRun(
            ranks=self.ranks,
            plan=self.plan,
            seed=self.seed,
            folder=self.folder,
            device=self.device,
            prepared=self.prepared,
            begun=self.begun,
            progress=self.progress,
            ledger=self.ledger,
            console=self.console,
            dispatched_before=self.dispatched_before,
        )

    def _warm_up(self, trainer: Trainer) -> None:
        """Compile and touch memory, on synthetic tokens."""
        plan = self.plan
        self.console.line("compiling (kept for the next run)" if plan.compiled else "warming up")
        categories = ["compile"] if plan.compiled else []
        if self.device.kind != "cpu" or not plan.compiled:  # a CPU has no allocator or library left to warm
            categories.append("warmup")
        for category in categories:
            with self.ledger.span(category):
                warm_up(trainer, plan.device_sequences, plan.model.sequence_length, self.device.torch_device)
                self.wait_for_compiled()  # or it would train beside it
                release_garbage()

    def _prove_compiled(self, trainer: Trainer) -> CompiledProof | None:
        """What was compiled for this model computes what the references do, or no training."""
        if not self.plan.compiled:
            return None
        plan, space = self.plan, self.request.workspace

        def made_now() -> dict[str, float]:
            self.console.line("proving what was compiled (kept for the next run)")
            ratios = error_ratios(trainer, plan.device_sequences, plan.model.sequence_length)
            release_garbage()
            if self.device.kind != "cpu":  # whose peak is the process's; others' are of what comes now
                self.device.empty_cache()
                self.device.reset_peak_memory()
            return ratios

        before = dispatches()
        with self.ledger.span("proof"), self.ranks.in_turn():
            facts = self.request.facts
            proof = compiled_proof_for(plan, facts, self.cpu_cores, space.root, space.proofs, made_now)
        self.training.leave_out(dispatches(since=before))
        return proof

    def _evaluate(self, trainer: Trainer) -> tuple[BitsPerByte | None, BitsPerByte | None, Probes | None]:
        """Final scores under probes; nothing is scored of a diverged run. The final weights are kept."""
        if self.progress.diverged_at is not None:
            return None, None, None
        self.training.save(trainer)
        self.console.line("evaluating")
        with self.ledger.span("eval"):
            model, device = trainer.model, self.device.torch_device
            num_tokens, rows = self.prepared.facts.validation.num_tokens, self.plan.device_sequences
            before = weights_sha256(model)
            documents = self.training.score(trainer)
            if documents is None:
                return None, None, None
            bestfit = bestfit_bpb(model, self.prepared, rows, num_tokens, device, self.ranks)
            probes = probe(model, device, seed_stream(self.seed, "probe"))
            check_frozen(before, probes.weights_sha256)
        return documents, bestfit, probes

    def _score_core(self, trainer: Trainer) -> CoreScore | None:
        """CORE of the final weights, where the track scores it."""
        if self.core is None:
            return None
        with self.ledger.span("core"):
            core = self.core.score(
                trainer.model, self.prepared, self.device, self.folder, self.console, self.ranks
            )
        self.training.write(
            "core", metric_id=core.metric_id, value=core.value, standard_error=core.standard_error
        )
        return core
