"""The `core` phase of a run: its bundle before any training, its score after it, by the track's metric id."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from bench.data.prepared import Prepared
from bench.data.tokenizer import Tokenizer
from bench.errors import DataError, RecipeError
from bench.evaluation.core.bundle import Bundle, fetch_bundle
from bench.evaluation.core.evaluate import CoreOptions, evaluate_core, tokens_folder
from bench.evaluation.core.items import SquadRule
from bench.evaluation.core.report import tell
from bench.evaluation.core.result import CoreScore
from bench.evaluation.core.score import Baselines, metric_id
from bench.host.console import Console
from bench.host.device import Device
from bench.spec.track import Score
from bench.training.ranks import ALONE, Ranks
from model.gpt import GPT


class CorePhase(NamedTuple):
    """What scoring CORE takes, all of it at hand before training."""

    bundle: Bundle
    metric: str
    options: CoreOptions
    data_folder: Path

    def score(
        self,
        model: GPT,
        prepared: Prepared,
        device: Device,
        folder: Path,
        console: Console,
        ranks: Ranks = ALONE,
    ) -> CoreScore:
        """CORE of a run's final weights, the same on every rank.

        Args:
            folder: the run's, which keeps the answers: a resumed run goes on by task.

        Raises:
            DataError: the evaluation came to another metric than the track's.
            VerificationFailed: a probe failed, or the weights changed.
        """
        console.line("evaluating CORE")
        score = evaluate_core(
            model,
            Tokenizer.load(prepared.tokenizer_path, prepared.facts.tokenizer_sha256),
            self.bundle,
            device.torch_device,
            self.options,
            tokens=tokens_folder(self.data_folder),
            answers=folder / "core",
            ranks=ranks,
            progress=lambda progress: tell(console, progress),
        ).score
        if score.metric_id != self.metric:
            raise DataError(
                f"measured {score.metric_id}, the track scores {self.metric}", "restore the bundle"
            )
        return score


def core_phase(score: Score, data_folder: Path, workers: int) -> CorePhase | None:
    """The phase where the track scores CORE, else None.

    Raises:
        DataError: the bundle cannot be had; before hours of training, not after.
        RecipeError: no evaluation has the track's metric id.
    """
    if score.metric != "core":
        return None
    options = msgspec.structs.replace(options_of(score.metric_id), workers=workers)
    return CorePhase(fetch_bundle(data_folder), score.metric_id, options, data_folder)


def options_of(metric: str) -> CoreOptions:
    """The whole evaluation of this name; RecipeError where there is none."""
    rules = product(get_args(Baselines), get_args(SquadRule))
    known = {metric_id(baselines, squad): (baselines, squad) for baselines, squad in rules}
    if metric not in known:
        raise RecipeError(f"score.metric_id = {metric}: no evaluation of that name", ", ".join(sorted(known)))
    baselines, squad = known[metric]
    return CoreOptions(baselines=baselines, squad=squad)
