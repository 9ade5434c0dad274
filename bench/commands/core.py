"""The command that scores a checkpoint: core."""

from __future__ import annotations

import argparse

from bench.commands.shared import before_torch, emit, workspace


def core(options: argparse.Namespace) -> None:
    """`bench core`."""
    before_torch(options)
    from bench.evaluation.core.bundle import fetch_bundle, open_bundle
    from bench.evaluation.core.evaluate import CoreOptions, evaluate_core, tokens_folder
    from bench.evaluation.core.loading import load_checkpoint
    from bench.evaluation.core.report import core_table, lm_eval_table, tell
    from bench.host.console import Console
    from bench.host.device import configure, open_device
    from bench.host.machine import detect

    space, console = workspace(options), Console(quiet=options.json)
    facts = detect(options.device, environment=options.environment)
    device = open_device(facts.device_kind)
    configure(device, cpu_cores=facts.cpu_cores, environment=options.environment)
    loaded = load_checkpoint(options.checkpoint, device)  # before the bundle, which may have to be downloaded
    bundle = open_bundle(options.bundle) if options.bundle else fetch_bundle(space.data)
    console.line(
        f"step {loaded.step} on {facts.device_name}: CORE, {len(bundle.manifest.files)} files verified"
    )
    result = evaluate_core(
        loaded.model,
        loaded.tokenizer,
        bundle,
        device.torch_device,
        CoreOptions(
            max_per_task=options.max_per_task,
            baselines=options.baselines,
            squad=options.squad,
            workers=facts.cpu_cores,
        ),
        tokens=tokens_folder(space.data),
        answers=space.data / "core" / "answers",
        progress=lambda progress: tell(console, progress),
    )
    if options.json:
        emit(result)
    else:
        print(lm_eval_table(result.score) if options.lm_eval_table else core_table(result.score))
