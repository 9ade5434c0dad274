"""A model's loss by how many tokens of context it has, on held-out text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bench.data.prepared import Prepared
from bench.errors import DataError
from bench.evaluation.bits_per_byte import token_losses
from model.gpt import GPT

MAX_CONTEXTS = 128  # arXiv 2602.07488 takes its exponent from windows of so many tokens
ROWS_AT_ONCE = 64


def window_starts(
    offsets: npt.NDArray[np.int64], num_contexts: int, num_windows: int
) -> npt.NDArray[np.int64]:
    """Where windows of text begin: at most `num_windows`, evenly spread, each within one document."""
    first, last = offsets[:-1] + 1, offsets[1:]
    found = [
        np.arange(start, stop - num_contexts + 1, num_contexts)
        for start, stop in zip(first, last, strict=True)
        if stop - start >= num_contexts
    ]
    if not found:
        raise DataError(
            f"no held-out document has {num_contexts} tokens",
            "evaluate a longer text, or a model of shorter rows",
        )
    starts = np.concatenate(found)
    return np.asarray(starts[np.linspace(0, starts.size - 1, min(num_windows, starts.size)).astype(np.int64)])


@torch.no_grad()
def position_losses(
    model: GPT,
    prepared: Prepared,
    device: torch.device,
    *,
    num_windows: int = 4096,
    num_contexts: int | None = None,
) -> npt.NDArray[np.float64]:
    """Nats of each token of each window; [windows, contexts], column n after n tokens of text.

    A row is <|bos|> and a window from anywhere in a document: the model learned from rows that begin so. That
    a document rarely begins there costs it something at the first few tokens.
    """
    T = min(num_contexts or MAX_CONTEXTS, model.config.sequence_length)
    starts = window_starts(prepared.validation.offsets, T, num_windows)
    losses = []
    for at in range(0, starts.size, ROWS_AT_ONCE):
        places = starts[at : at + ROWS_AT_ONCE, None] + np.arange(T)
        targets = torch.from_numpy(prepared.validation.tokens[places].astype(np.int64))
        inputs = torch.cat((torch.full((targets.shape[0], 1), prepared.bos_id), targets[:, :-1]), dim=1)
        losses.append(token_losses(model, inputs.to(device), targets.to(device)).numpy())
    return np.concatenate(losses)
