"""Losses by position: windows lie in documents, and a column is what so much context gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.data.prepared import Prepared
from bench.errors import DataError
from bench.evaluation.position_losses import position_losses, window_starts
from model.gpt import GPT
from tests.evaluation.test_bits_per_byte import config, nats_of
from tests.model.configs import scrambled


def test_windows_lie_within_documents_and_are_spread() -> None:
    offsets = np.array([0, 5, 40, 42, 100])
    starts = window_starts(offsets, 8, 100)
    assert starts.tolist() == [6, 14, 22, 30, 43, 51, 59, 67, 75, 83, 91]
    few = window_starts(offsets, 8, 3)
    assert few.tolist() == [6, 51, 91]


def test_documents_shorter_than_the_window_are_an_error() -> None:
    with pytest.raises(DataError, match="no held-out document has 8 tokens"):
        window_starts(np.array([0, 5, 10]), 8, 3)


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model that computes in float64."""
    return scrambled(config(), torch.float64)


def test_a_column_is_what_so_many_tokens_of_a_document_give(model: GPT, prepared: Prepared) -> None:
    losses = position_losses(model, prepared, torch.device("cpu"), num_windows=70, num_contexts=16)
    starts = window_starts(prepared.validation.offsets, 16, 70)
    assert losses.shape == (70, 16)
    for row in (0, 33, 69):
        window = prepared.validation.tokens[starts[row] : starts[row] + 16].astype(np.int64).tolist()
        expected = nats_of(model, [prepared.bos_id, *window])
        assert losses[row] == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_no_more_contexts_than_the_model_has_positions(model: GPT, prepared: Prepared) -> None:
    length = model.config.sequence_length
    losses = position_losses(model, prepared, torch.device("cpu"), num_windows=4, num_contexts=10**6)
    assert losses.shape[1] == length
