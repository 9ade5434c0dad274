"""Validation rows: every byte scored once in the one definition, nanochat's packing in the other."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data.packing import Packing
from bench.data.prepared import Prepared
from bench.data.validation import IGNORED, bestfit_batches, document_rows


def _scored(prepared: Prepared, **arguments: object) -> dict[int, list[int]]:
    """Targets by document, joined in row order within each document's own windows."""
    windows: dict[int, list[tuple[list[int], list[int]]]] = {}
    for batch in document_rows(prepared, **arguments):  # type: ignore[arg-type]
        for inputs, targets, document in zip(
            batch.inputs, batch.targets, batch.documents.tolist(), strict=True
        ):
            length = int((targets != IGNORED).sum())
            assert (targets[:length] != IGNORED).all()
            assert (inputs[length:] == prepared.bos_id).all()
            assert (length > 0) == (document >= 0)
            if document >= 0:
                assert inputs[1:length].tolist() == targets[: length - 1].tolist()
                windows.setdefault(document, []).append((inputs[:length].tolist(), targets[:length].tolist()))
    scored = {}
    for document, rows in windows.items():
        # Longest first leaves the windows of one document in order: all but its last are full.
        previous = prepared.bos_id
        for inputs, targets in rows:
            assert inputs[0] == previous
            previous = targets[-1]
        scored[document] = [token for _, targets in rows for token in targets]
    return scored


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize(("sequence_length", "rows_per_batch"), [(1, 64), (7, 16), (64, 3), (2048, 5)])
def test_every_token_is_scored_exactly_once(
    prepared: Prepared, sequence_length: int, rows_per_batch: int, bucket: bool
) -> None:
    scored = _scored(prepared, sequence_length=sequence_length, rows_per_batch=rows_per_batch, bucket=bucket)
    offsets = prepared.validation.offsets
    expected = {
        document: prepared.validation.tokens[offsets[document] + 1 : offsets[document + 1]].tolist()
        for document in range(prepared.validation.num_documents)
    }
    assert scored == expected
    assert sum(int(prepared.byte_lengths[tokens].sum()) for tokens in scored.values()) == (
        prepared.facts.validation.text_bytes
    )


def test_ranks_share_the_batches(prepared: Prepared) -> None:
    whole = [batch.targets for batch in document_rows(prepared, 64, 3)]
    shared = [
        [batch.targets for batch in document_rows(prepared, 64, 3, rank=r, world_size=4)] for r in range(4)
    ]
    assert sum(map(len, shared)) == len(whole)
    for index, targets in enumerate(whole):
        assert np.array_equal(shared[index % 4][index // 4], targets)


def test_buckets_are_multiples_of_64_that_just_hold_the_longest_row(prepared: Prepared) -> None:
    for batch in document_rows(prepared, 500, 4, bucket=True):
        longest = int((batch.targets != IGNORED).sum(axis=1).max())
        assert batch.inputs.shape[1] == min(500, -(-longest // 64) * 64)
    assert {batch.inputs.shape for batch in document_rows(prepared, 500, 4)} == {(4, 500)}


def test_bestfit_is_the_packing_in_corpus_order_and_goes_round(prepared: Prepared) -> None:
    sequence_length, rows_per_batch = 48, 4
    num_tokens = 2 * prepared.facts.validation.num_tokens + 5
    batches = list(bestfit_batches(prepared, sequence_length, rows_per_batch, num_tokens))
    assert len(batches) == num_tokens // (sequence_length * rows_per_batch)
    plan = Packing(prepared.validation.offsets, sequence_length + 1, seed=0, shuffle=False)
    rows = plan.rows(len(batches) * rows_per_batch)
    pieces = [
        prepared.validation.tokens[start:end] for start, end in rows.pieces(0, len(batches) * rows_per_batch)
    ]
    block = np.concatenate(pieces).reshape(-1, sequence_length + 1)
    assert np.array_equal(np.concatenate([batch.inputs for batch in batches]), block[:, :-1])
    assert np.array_equal(np.concatenate([batch.targets for batch in batches]), block[:, 1:])
    assert [batch.num_bytes for batch in batches] == [
        int(prepared.byte_lengths[batch.targets].sum()) for batch in batches
    ]
