"""Bits per byte: equal to a plain computation, and independent of how the rows are batched."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.data.packing import Packing
from bench.data.prepared import Prepared
from bench.evaluation import bits_per_byte
from bench.evaluation.bits_per_byte import bestfit_bpb, documents_bpb, whole_rows
from kernels.choices import rows_per_chunk
from model.config import ModelConfig
from model.gpt import GPT
from tests.model.configs import CPU, EAGER, scrambled, small_config

T = 96


def config(**changes: Any) -> ModelConfig:
    """A model of the corpus's 320 tokens."""
    return small_config(vocab_size=320, vocab_padded=320, sequence_length=T, depth=2, **changes)


@pytest.fixture(scope="module")
def exact() -> GPT:
    """A model that computes in float64."""
    return scrambled(config(), torch.float64)


def nats_of(model: GPT, tokens: list[int]) -> Tensor:
    """-log p of each token after the first, from all logits, one row, float64."""
    logits = model.logits(model(torch.tensor([tokens[:-1]])))[0].double()
    return -logits.log_softmax(-1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]


@torch.no_grad()
def plain_documents_nats(model: GPT, prepared: Prepared, num_documents: int) -> list[float]:
    """One document at a time, windows of T predictions, each starting with the token before."""
    offsets, tokens = prepared.validation.offsets, prepared.validation.tokens
    nats = []
    for document in range(num_documents):
        text = tokens[offsets[document] : offsets[document + 1]].tolist()
        windows = [text[start : start + T + 1] for start in range(0, len(text) - 1, T)]
        nats.append(sum(float(nats_of(model, window).sum()) for window in windows))
    return nats


def test_documents_equal_one_document_at_a_time(exact: GPT, prepared: Prepared) -> None:
    # The plain computation's logits are float32, for `logits` promises that: 1e-7 of a logit.
    expected = sum(plain_documents_nats(exact, prepared, prepared.validation.num_documents))
    found = documents_bpb(exact, prepared, 5, CPU)
    assert found.nats == pytest.approx(expected, rel=1e-7)
    assert found.num_bytes == int(prepared.validation_sizes.sum()) == prepared.facts.validation.text_bytes
    assert found.num_tokens == prepared.validation.tokens.size - prepared.validation.num_documents
    assert found.value == found.nats / (math.log(2) * found.num_bytes)
    assert found.metric_id == "bpb-documents-v1"


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_documents_do_not_depend_on_the_rows_at_once(exact: GPT, prepared: Prepared, rows: int) -> None:
    expected = documents_bpb(exact, prepared, 7, CPU)
    assert documents_bpb(exact, prepared, rows, CPU).nats == pytest.approx(expected.nats, rel=1e-12)


def test_documents_in_float32_agree_to_rounding(exact: GPT, prepared: Prepared) -> None:
    single = scrambled(config(), torch.float32)
    values = [documents_bpb(single, prepared, rows, CPU).value for rows in (1, 4, 64)]
    # Measured 2026-11-22: 4e-9 between them; single products round at 6e-8, and thousands average out.
    assert values == pytest.approx([values[0]] * 3, rel=5e-8)
    assert values[0] == pytest.approx(documents_bpb(exact, prepared, 7, CPU).value, rel=1e-6)


def test_documents_do_not_depend_on_the_order_of_buckets(
    exact: GPT, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucketed = documents_bpb(exact, prepared, 4, CPU)
    real = bits_per_byte.document_rows
    monkeypatch.setattr(
        bits_per_byte, "document_rows", lambda *a, bucket, **b: real(*a, bucket=not bucket, **b)
    )
    in_order = documents_bpb(exact, prepared, 4, CPU)
    assert in_order.nats == pytest.approx(bucketed.nats, rel=1e-12)
    assert in_order.num_tokens == bucketed.num_tokens


def test_a_uniform_model_needs_log2_of_the_vocabulary_a_token(prepared: Prepared) -> None:
    model = scrambled(config(), torch.float64)
    with torch.no_grad():
        model.lm_head.zero_()
    for found in (documents_bpb(model, prepared, 4, CPU), bestfit_bpb(model, prepared, 4, 5000, CPU)):
        assert found.value == pytest.approx(math.log2(320) * found.num_tokens / found.num_bytes, rel=1e-12)


@torch.no_grad()
def plain_bestfit_bpb(model: GPT, prepared: Prepared, num_rows: int) -> float:
    """nanochat's evaluate_bpb (nanochat/loss_eval.py at 92d63d4), row by row."""
    rows = Packing(prepared.validation.offsets, T + 1, seed=0, shuffle=False).rows(num_rows)
    total_nats, total_bytes = 0.0, 0
    for row in range(num_rows):
        pieces = [prepared.validation.tokens[start:end] for start, end in rows.pieces(row, row + 1)]
        tokens = np.concatenate(pieces).astype(np.int64).tolist()
        lengths = torch.tensor([int(prepared.byte_lengths[token]) for token in tokens[1:]])
        total_nats += float((nats_of(model, tokens) * (lengths > 0)).sum())
        total_bytes += int(lengths.sum())
    return total_nats / (math.log(2) * total_bytes)


def test_bestfit_is_nanochats_and_does_not_depend_on_the_rows_at_once(exact: GPT, prepared: Prepared) -> None:
    num_tokens = prepared.facts.validation.num_tokens
    found = bestfit_bpb(exact, prepared, 8, num_tokens, CPU)
    num_rows, _ = whole_rows(num_tokens // T, 8)
    assert found.value == pytest.approx(plain_bestfit_bpb(exact, prepared, num_rows), rel=1e-7)
    assert prepared.byte_lengths[prepared.bos_id] == 0
    assert found.num_tokens < num_rows * T  # special tokens are left out
    for rows in (1, 6, 512):
        assert bestfit_bpb(exact, prepared, rows, num_tokens, CPU).nats == pytest.approx(
            found.nats, rel=1e-12
        )


@given(num_rows=st.integers(0, 10**6), rows=st.integers(1, 2048), other=st.integers(1, 2048))
def test_whole_rows(num_rows: int, rows: int, other: int) -> None:
    scored, at_once = whole_rows(num_rows, rows)
    assert scored == whole_rows(num_rows, other)[0]
    assert scored % at_once == 0
    assert at_once <= rows
    assert 1 <= scored <= max(num_rows, 1)
    assert scored > num_rows / 2
    assert num_rows < 64 or scored > num_rows - 64


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_all_logits_never_exist_at_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 1 << 15  # so that the loss goes by chunks at this number of rows
    shape = config()
    wide = msgspec.structs.replace(shape, vocab_size=vocab, vocab_padded=vocab, value_embedding_layers=())
    rows = 16
    real = bits_per_byte.document_rows
    monkeypatch.setattr(bits_per_byte, "document_rows", lambda *a, **b: islice(real(*a, **b), 1))
    assert rows_per_chunk(vocab) < rows * T
    largest = []
    for kernels in ({}, {"kernels": EAGER}):
        with LargestTensor() as seen:
            documents_bpb(scrambled(wide, **kernels), prepared, rows, CPU)
        largest.append(seen.num_elements)
    assert largest[0] <= max(rows_per_chunk(vocab), shape.width) * vocab
    assert largest[0] < rows * T * vocab <= largest[1]  # the reference holds them: the measure sees it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scored_in_the_compute_dtype(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model, seen = scrambled(config(), dtype), set()
    loss = model.kernels.linear_cross_entropy

    def watched(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.add(hidden.dtype)
        return loss(hidden, *arguments, **options)

    monkeypatch.setattr(model, "kernels", model.kernels._replace(linear_cross_entropy=watched))
    documents_bpb(model, prepared, 16, CPU)
    bestfit_bpb(model, prepared, 16, 2000, CPU)
    assert seen == {dtype}


def test_progress_is_told(exact: GPT, prepared: Prepared) -> None:
    told: list[int] = []
    documents_bpb(exact, prepared, 32, CPU, told.append)
    assert told == [32 * (i + 1) for i in range(len(told))]
    assert told
