"""The command about text: data pin, fetch, prepare."""

from __future__ import annotations

import argparse

from bench.commands.shared import workspace


def data(options: argparse.Namespace) -> None:
    """`bench data pin|fetch|prepare`."""
    from bench.data import command

    endpoint = options.environment.get("HF_ENDPOINT", "https://huggingface.co")
    token = options.environment.get("HF_TOKEN") or None
    folder = workspace(options).data
    if options.action == "pin":
        command.pin_dataset(options.dataset, endpoint, token)
    elif options.action == "fetch":
        command.fetch_dataset(options.dataset, options.shards, folder, endpoint, token)
    else:
        command.prepare_dataset(options.dataset, options.shards, options.vocab, folder)
