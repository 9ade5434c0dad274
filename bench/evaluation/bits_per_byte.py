"""Bits per byte of the validation text, by two definitions; the harness scores, the model only predicts.

`bpb-documents-v1`: every byte of a fixed list of documents is scored once; a document is its own row or rows,
so the value does not depend on batch, packing, world size or the tokenizer's byte table. `bpb-bestfit-v1`:
nanochat's own, over best-fit packed rows, for comparison with published figures only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import msgspec
import torch
from torch import Tensor

from bench.data.prepared import Prepared
from bench.data.validation import bestfit_batches, document_rows
from bench.training.ranks import ALONE, Ranks
from model.gpt import GPT

DOCUMENTS_METRIC = "bpb-documents-v1"
BESTFIT_METRIC = "bpb-bestfit-v1"
LARGEST_BLOCK_ROWS = 64


class BitsPerByte(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation: nats in float64 over bytes counted from raw text."""

    metric_id: str
    value: float
    nats: float
    num_bytes: int
    num_tokens: int


def token_losses(model: GPT, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Nats of each target, [B, T] float64 on the CPU; 0 where the target is -1."""
    hidden_BTD = model(inputs_BT)
    loss_N = model.kernels.linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.head_weight(),
        targets_BT.flatten(),
        softcap=model.config.softcap,
        reduction="none",
    )
    return loss_N.view(targets_BT.shape).cpu().double()  # in this order: MPS has no float64


@torch.no_grad()
def documents_bpb(
    model: GPT,
    prepared: Prepared,
    rows: int,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> BitsPerByte:
    """`bpb-documents-v1`, the same on every rank.

    Args:
        rows: rows at once; the value does not depend on it.
        progress: called with the documents' rows done so far on this rank.
        ranks: who shares the rows.
    """
    nats, tokens = 0.0, 0
    T = model.config.sequence_length
    shared = document_rows(prepared, T, rows, bucket=True, rank=ranks.rank, world_size=ranks.size)
    for index, batch in enumerate(shared):
        inputs = torch.from_numpy(batch.inputs).to(device)
        targets = torch.from_numpy(batch.targets)
        nats += float(token_losses(model, inputs, targets.to(device)).sum())
        tokens += int((targets >= 0).sum())
        if progress is not None:
            progress((index + 1) * rows)
    nats, num_tokens = ranks.totals(nats, tokens)
    num_bytes = prepared.facts.validation.text_bytes
    return BitsPerByte(
        metric_id=DOCUMENTS_METRIC,
        value=nats / (math.log(2.0) * num_bytes),
        nats=nats,
        num_bytes=num_bytes,
        num_tokens=int(num_tokens),
    )


@torch.no_grad()
def bestfit_bpb(
    model: GPT,
    prepared: Prepared,
    rows: int,
    num_tokens: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> BitsPerByte:
    """`bpb-bestfit-v1` over about `num_tokens`; special tokens count neither nats nor bytes.

    Args:
        rows: rows at once; the value does not depend on it.
    """
    nats, num_bytes, tokens = 0.0, 0, 0
    byte_lengths = torch.from_numpy(prepared.byte_lengths.copy())
    T = model.config.sequence_length
    num_rows, rows = whole_rows(num_tokens // T, rows)
    for batch in islice(bestfit_batches(prepared, T, rows, num_rows * T), ranks.rank, None, ranks.size):
        inputs, targets = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets)
        counted = byte_lengths[targets] > 0
        nats += float(token_losses(model, inputs, targets.to(device))[counted].sum())
        num_bytes += batch.num_bytes
        tokens += int(counted.sum())
    nats, total_bytes, total_tokens = ranks.totals(nats, num_bytes, tokens)
    return BitsPerByte(
        metric_id=BESTFIT_METRIC,
        value=nats / (math.log(2.0) * total_bytes),
        nats=nats,
        num_bytes=int(total_bytes),
        num_tokens=int(total_tokens),
    )


def whole_rows(num_rows: int, rows: int) -> tuple[int, int]:
    """(rows to score, rows at once): the first depends on `num_rows` alone, the second divides it.

    nanochat scores whole batches of its device's size, so its value changes with the memory of the device.
    """
    block = min(LARGEST_BLOCK_ROWS, 1 << (max(num_rows, 1).bit_length() - 1))
    return max(num_rows // block, 1) * block, math.gcd(block, rows)
