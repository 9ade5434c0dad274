"""CORE of a model, the one way: probes, every task of the bundle, answers kept, weights unchanged."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch

from bench.data.tokenizer import Tokenizer
from bench.errors import DataError, RecipeError
from bench.evaluation.core.bundle import Bundle
from bench.evaluation.core.engine import Engine
from bench.evaluation.core.items import SquadRule, encoded_items
from bench.evaluation.core.path_probe import PathProbes, probe_path
from bench.evaluation.core.prompts import Encoded, crop
from bench.evaluation.core.result import CoreScore
from bench.evaluation.core.resume import Kept, Subject
from bench.evaluation.core.score import (
    NEAR_TIE_NATS,
    Baselines,
    KeptTask,
    baselines_of,
    core_score,
    metric_id,
    task_score,
)
from bench.evaluation.core.tasks import Task, read_baselines, read_tasks
from bench.evaluation.probes import Probes, check_frozen, probe, weights_sha256
from bench.training.ranks import ALONE, Ranks
from model.gpt import GPT

# nanochat keeps rotary positions for ten times the trained length and crops none of its own models' prompts.
POSITIONS_RATIO = 10


class CoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may differ between evaluations; the first three are in the metric's id."""

    max_per_task: int | None = None  # None: all
    baselines: Baselines = "v1"
    squad: SquadRule = "nanochat"
    token_budget: int | None = None  # tokens of a batch; None: by device
    compiled: bool = False
    workers: int = 1  # threads that tokenise
    probe_seed: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an evaluation is; `left_s` is of this task, by the tokens it has done."""

    label: str
    number: int
    num_tasks: int
    share: float
    left_s: float
    score: KeptTask | None = None  # of a finished task


class CoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """The score and what vouches for it."""

    score: CoreScore
    probes: Probes
    path_probes: PathProbes


def tokens_folder(data_folder: Path) -> Path:
    """Where the tokens of every tokenizer are kept."""
    return data_folder / "core" / "tokens"


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    bundle: Bundle,
    device: torch.device,
    options: CoreOptions | None = None,
    *,
    tokens: Path | None = None,
    answers: Path | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[Progress], None] | None = None,
) -> CoreResult:
    """Evaluate a model on every task of a bundle.

    Args:
        tokens: folder that keeps each task's tokens; None keeps none.
        answers: folder that keeps each task's answers, from which a killed evaluation goes on.
        ranks: processes that share the work; each gets the whole result.
        progress: hears of each batch, and of each task that is done.

    Raises:
        VerificationFailed: a probe failed, or the weights changed.
        DataError, RecipeError: the bundle or the options cannot be scored.
    """
    options = options or CoreOptions()
    if model.config.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"the model has {model.config.vocab_size:,} tokens, the tokenizer {tokenizer.vocab_size:,}",
            "name the tokenizer that the model was trained with",
        )
    if options.max_per_task is not None and options.max_per_task < 1:
        raise RecipeError(f"max_per_task of {options.max_per_task}", "1 or more, or leave it out for all")
    return _Evaluation(model, tokenizer, bundle, device, options, tokens, answers, ranks, progress).run()


class _Evaluation:
    """One evaluation under way."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        bundle: Bundle,
        device: torch.device,
        options: CoreOptions,
        tokens: Path | None,
        answers: Path | None,
        ranks: Ranks,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model, self.tokenizer, self.bundle, self.device = model, tokenizer, bundle, device
        self.options, self.ranks, self.progress = options, ranks, progress
        self.tokens, self.answers = tokens, answers
        self.tasks = read_tasks(bundle)
        self.baselines = baselines_of(read_baselines(bundle), self.tasks, options.baselines)
        self.max_tokens = POSITIONS_RATIO * model.config.sequence_length

    def run(self) -> CoreResult:
        """Probes, tasks, frozen weights, score."""
        probes = probe(self.model, self.device, self.options.probe_seed)
        engine = Engine(
            self.model,
            self.device,
            self.max_tokens,
            token_budget=self.options.token_budget,
            compiled=self.options.compiled,
            ranks=self.ranks,
        )
        path_probes = probe_path(engine, self.options.probe_seed)
        kept = self._answers(engine, self._kept(probes.weights_sha256))
        check_frozen(probes.weights_sha256, weights_sha256(self.model))
        return CoreResult(score=self._score(kept), probes=probes, path_probes=path_probes)

    def _kept(self, weights: str) -> Kept:
        subject = Subject(
            weights_sha256=weights,
            tokenizer_sha256=self.tokenizer.sha256,
            bundle_sha256=self.bundle.manifest.sha256,
            compute_dtype=str(self.model.compute_dtype),
            max_tokens=self.max_tokens,
            max_per_task=self.options.max_per_task,
            squad=self.options.squad,
        )
        return Kept(self.answers, subject)

    def _answers(self, engine: Engine, kept: Kept) -> list[KeptTask]:
        """Every task's answers; while a task runs, the next one is tokenised."""
        found = self._found(kept)
        missing = [task for task in self.tasks if task.label not in found]
        with ThreadPoolExecutor(1) as pool:
            coming: Future[list[Encoded]] | None = pool.submit(self._encoded, missing[0]) if missing else None
            for number, task in enumerate(missing):
                assert coming is not None
                items = coming.result()
                following = missing[number + 1 : number + 2]
                coming = pool.submit(self._encoded, following[0]) if following else None
                found[task.label] = self._run(engine, task, items)
                if self.ranks.is_first:
                    kept.write(found[task.label])
        return [found[task.label] for task in self.tasks]

    def _found(self, kept: Kept) -> dict[str, KeptTask]:
        """Answers of an earlier process, the same on every rank: the first one's."""
        found = {task.label: each for task in self.tasks if (each := kept.read(task.label)) is not None}
        return self.ranks.share(found)

    def _encoded(self, task: Task) -> list[Encoded]:
        return encoded_items(
            self.bundle,
            task,
            self.tokenizer,
            max_items=self.options.max_per_task,
            squad=self.options.squad,
            workers=self.options.workers,
            cache=self.tokens,
        )

    def _run(self, engine: Engine, task: Task, items: list[Encoded]) -> KeptTask:
        started_s = time.monotonic()
        is_dclm = self.options.squad == "dclm" and task.label == "squad"
        longest = self.model.config.sequence_length if is_dclm else self.max_tokens
        cropped = [crop(item, longest, f"{task.label} item {index}") for index, item in enumerate(items)]
        answers = engine.answer(
            [item for item, _ in cropped], lambda done, total: self._tell(task, started_s, done / total)
        )
        seconds = time.monotonic() - started_s
        kept = KeptTask(
            label=task.label, answers=answers, cropped_rows=sum(lost for _, lost in cropped), seconds=seconds
        )
        self._tell(task, started_s, 1.0, kept)
        return kept

    def _tell(self, task: Task, started_s: float, share: float, kept: KeptTask | None = None) -> None:
        if self.progress is not None:
            spent_s = time.monotonic() - started_s
            left_s = spent_s * (1.0 - share) / share
            number = self.tasks.index(task) + 1
            self.progress(
                Progress(
                    label=task.label,
                    number=number,
                    num_tasks=len(self.tasks),
                    share=share,
                    left_s=left_s,
                    score=kept,
                )
            )

    def _score(self, kept: list[KeptTask]) -> CoreScore:
        options, manifest = self.options, self.bundle.manifest
        near_tie_nats = NEAR_TIE_NATS[str(self.model.compute_dtype).removeprefix("torch.")]
        scores = [
            task_score(task, each, self.baselines[task.label], near_tie_nats)
            for task, each in zip(self.tasks, kept, strict=True)
        ]
        other_bundle = "" if self.bundle.is_published else manifest.sha256
        return core_score(
            scores,
            metric_id(options.baselines, options.squad, options.max_per_task, other_bundle),
            limited=options.max_per_task is not None,
            bundle_sha256=manifest.sha256,
            tokenizer_sha256=self.tokenizer.sha256,
        )
