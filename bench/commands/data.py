"""The command about text: data pin, fetch, prepare."""

from __future__ import annotations

import argparse
import re
from urllib.parse import urlsplit

from bench.commands.shared import workspace
from bench.errors import RecipeError


def data(options: argparse.Namespace) -> None:
    """`bench data pin|fetch|prepare`."""
    from bench.data import command

    endpoint, token = _hub(options)
    folder = workspace(options).data
    if options.action == "pin":
        command.pin_dataset(options.dataset, endpoint, token)
    elif options.action == "fetch":
        command.fetch_dataset(options.dataset, options.shards, folder, endpoint, token)
    else:
        from bench.host.machine import detect

        cores = detect("cpu", environment={}).cpu_cores
        command.prepare_dataset(options.dataset, options.shards, options.vocab, folder, cores)


def _hub(options: argparse.Namespace) -> tuple[str, str | None]:
    """The hub's address and the token for it, as the environment says.

    Raises:
        RecipeError: one of them is none. A token is never printed.
    """
    endpoint = options.environment.get("HF_ENDPOINT", "https://huggingface.co").strip()
    token = options.environment.get("HF_TOKEN", "").strip()
    if not _is_address(endpoint):
        raise RecipeError(f"HF_ENDPOINT = {endpoint!a}: no address", "https://..., file://... or a folder")
    if not re.fullmatch(r"[!-~]*", token):
        raise RecipeError("HF_TOKEN holds a space or a line break within", "export it again, whole")
    return endpoint, token or None


def _is_address(endpoint: str) -> bool:
    if "://" not in endpoint:
        return bool(endpoint)  # a folder
    try:
        _ = urlsplit(endpoint).port  # a ValueError where it is no number
    except ValueError:
        return False
    return re.fullmatch(r"[!-~]+", endpoint) is not None
