"""The command that infers a horizon from a text's statistics: horizon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.experiments import write_text
from bench.commands.shared import before_torch, emit, workspace
from bench.errors import RecipeError

if TYPE_CHECKING:
    from bench.data.corpus import Corpus
    from bench.data.tokenizer import Tokenizer
    from bench.experiments.horizon.calibration import Inference
    from bench.experiments.horizon.calibration_runs import Calibrated
    from bench.experiments.horizon.decision import Decision
    from bench.experiments.horizon.measure import Losses, Statistics
    from bench.spec.recipe import Recipe

    Text = tuple[Corpus, Tokenizer]


def horizon(options: argparse.Namespace) -> None:
    """`bench horizon`."""
    planned = _planned(options)
    if options.plan:
        _show_plan(options, planned)
        return
    # As it is now: reading a checkpoint sets variables of torch, which a run would record as its own.
    inherited = dict(options.environment)
    found = _statistics(options, planned)
    decision, inference = _decided(options, planned, found, inherited)
    folder = options.folder or workspace(options).root / "leaderboard" / "horizon" / _slug(options.dataset)
    written = _write(folder, found, inference, decision)
    if options.json:
        emit({"statistics": found, "inference": inference, "decision": decision})
        return
    from bench.experiments.horizon.report import inference_text, statistics_text

    print(f"{statistics_text(found)}\n\n{inference_text(inference)}\nwrote {', '.join(written)} to {folder}")


def lag_list(text: str) -> tuple[int, ...]:
    """An argument's type: at least three different lags of 1 to 4,096, rising."""
    try:
        lags = sorted({int(word) for word in text.split(",")})
    except ValueError:
        lags = []
    if len(lags) < 3 or not 1 <= lags[0] <= lags[-1] <= 4096:
        raise argparse.ArgumentTypeError(f"{text!a} is not three or more lags of 1 to 4,096, as 1,2,4,8")
    return tuple(lags)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _slug(dataset: str) -> str:
    return dataset.rpartition(":")[2]


def _planned(options: argparse.Namespace) -> Calibrated | None:
    from bench.experiments.horizon.calibration_runs import plan_calibration

    if options.recipe is None:
        given = [
            name for name in ("track", "horizons", "target", "seeds") if getattr(options, name) is not None
        ]
        if given or options.plan:
            raise RecipeError(
                f"--{(given or ['plan'])[0]} needs --recipe", "name the recipe to calibrate with"
            )
        return None
    made = plan_calibration(
        options.recipe,
        options.track,
        options.horizons,
        options.seeds or 1,
        options.device,
        workspace(options),
        options.environment,
    )
    dataset = made.base.plan.recipe.data.dataset
    if dataset != options.dataset:
        raise RecipeError(
            f"{options.dataset} is not what {made.base.submission.name} on {made.base.track.name} trains on,"
            f" {dataset}",
            "statistics and calibration are of one text",
        )
    return made


def _show_plan(options: argparse.Namespace, planned: Calibrated | None) -> None:
    from bench.experiments.horizon.calibration_runs import as_json, calibration_table

    assert planned is not None, "--plan needs --recipe, which was checked"
    emit(as_json(planned)) if options.json else print(calibration_table(planned))


def _statistics(options: argparse.Namespace, planned: Calibrated | None) -> Statistics:
    from bench.data.prepare import prepare
    from bench.experiments.horizon.measure import measure
    from bench.host.machine import detect

    facts = detect("cpu", environment=options.environment)
    corpus, tokenizer = _text(options, planned.base.plan.recipe if planned else None, facts.cpu_cores)
    prepared = prepare(corpus, tokenizer, workspace(options).data, workers=facts.cpu_cores)
    losses = _losses(options, corpus, tokenizer) if options.checkpoint else None
    return measure(
        options.dataset,
        (corpus.sha256, tokenizer.sha256),
        prepared.train.tokens,
        prepared.validation.tokens,
        prepared.bos_id,
        prepared.facts.vocab_size,
        prepared.facts.train.text_bytes,
        lags=options.lags,
        losses=losses,
        entropy_rate=options.entropy_rate or 0.0,
        word=lambda token: tokenizer.decode([token]),
        tell=_tell,
    )


def _text(options: argparse.Namespace, recipe: Recipe | None, workers: int) -> Text:
    """The corpus and the tokenizer: the checkpoint's, else the recipe's, else of --vocab entries."""
    from bench.data.command import DEFAULT_VALIDATION_BYTES, TOKENIZER_CHARS
    from bench.data.corpus import open_corpus, tokenizer_for
    from bench.data.tokenizer import Tokenizer
    from bench.experiments.horizon.plain_text import corpus_of

    data = workspace(options).data
    corpus = open_corpus(
        corpus_of(options.dataset, data),
        data,
        validation_bytes=recipe.eval.validation_bytes if recipe else DEFAULT_VALIDATION_BYTES,
        shards=recipe.data.shards if recipe else options.shards,
        workers=workers,
    )
    if options.checkpoint:
        return corpus, Tokenizer.load(_checkpoint(options.checkpoint) / "tokenizer.json")
    vocab_size = recipe.model.vocab_size if recipe else options.vocab
    num_chars = recipe.data.tokenizer_chars if recipe else TOKENIZER_CHARS
    return corpus, tokenizer_for(corpus, vocab_size, data, num_chars)


def _checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself."""
    return max(path.glob("step-*"), default=path)


def _losses(options: argparse.Namespace, corpus: Corpus, tokenizer: Tokenizer) -> Losses:
    before_torch(options)
    import numpy as np

    from bench.data.prepare import prepare
    from bench.evaluation.core.loading import load_checkpoint
    from bench.evaluation.position_losses import position_losses
    from bench.experiments.horizon.measure import NUM_BLOCKS, Losses
    from bench.host.device import configure, open_device
    from bench.host.machine import detect

    facts = detect(options.device, environment=options.environment)
    device = open_device(facts.device_kind)
    configure(device, cpu_cores=facts.cpu_cores, environment=options.environment)
    loaded = load_checkpoint(_checkpoint(options.checkpoint), device)
    assert loaded.tokenizer.sha256 == tokenizer.sha256, "both are the checkpoint's"
    prepared = prepare(corpus, tokenizer, workspace(options).data)
    _tell(f"loss by position of step {loaded.step} on {facts.device_name}")
    rows = position_losses(loaded.model, prepared, device.torch_device)
    parts = np.array_split(rows, min(NUM_BLOCKS, len(rows)))
    return Losses(np.array([part.mean(axis=0) for part in parts]), loaded.step)


def _decided(
    options: argparse.Namespace,
    planned: Calibrated | None,
    found: Statistics,
    inherited: Mapping[str, str],
) -> tuple[Decision, Inference]:
    from bench.experiments.horizon.calibration import infer
    from bench.experiments.horizon.calibration_runs import run_calibration, series_of
    from bench.experiments.horizon.decision import decide
    from bench.experiments.runner import Place
    from bench.experiments.time_to_target import estimates, horizons_of

    if planned is None:
        inference = infer(found.exponent, [], None, None)
        return decide(found, inference, "val_bpb", None, []), inference
    space, score = workspace(options), planned.base.track.track.score
    run_calibration(planned, Place(space, options.device, inherited), _tell)
    series = series_of(planned, space)
    records = [run for each in series for run in each.runs]
    runs = horizons_of(records, series[-1]) if series else []
    target = options.target or score.target or None
    inference = infer(found.exponent, runs, target, planned.base.plan.scaling_parameters, score.better)
    times = estimates(runs, target, better=score.better) if runs and target else ()
    longest = next(iter(series[-1].finished.values())) if series else None
    return decide(found, inference, score.metric, longest, times), inference


def _write(folder: Path, found: Statistics, inference: Inference, decision: Decision) -> list[str]:
    """The statistics, the decision and the figures; returns their names."""
    import msgspec

    from bench.experiments.horizon.decision import csv_text
    from bench.experiments.horizon.report import statistics_chart, tokens_chart

    def as_text(value: object) -> str:
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"

    texts = {
        "statistics.json": as_text(found),
        "statistics.svg": statistics_chart(found),
        "decision.json": as_text({"decision": decision, "inference": inference}),
        "decision.csv": csv_text([decision]),
    }
    chart = tokens_chart(inference, found.dataset, decision.target_metric_name)
    texts |= {"tokens.svg": chart} if chart else {}
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)
