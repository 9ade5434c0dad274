"""Block overlap: equal to a search for every block in every text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.data import shingles
from bench.data.shingles import BLOCK_BYTES, block_hashes, build_index, window_hashes

# Few letters and long runs, so that blocks repeat, overlap and nearly match.
text = st.lists(
    st.sampled_from([b"a", b"b" * 31, b"ab" * 40, b"xyz" * 50, bytes(range(97, 123)) * 5]), max_size=12
)
joined = text.map(b"".join)


@given(st.lists(joined, max_size=4), st.lists(joined, max_size=4))
def test_share_equals_a_naive_search(validation: list[bytes], train: list[bytes]) -> None:
    index = build_index(block_hashes(validation))
    found = np.zeros(index.hashes.size, dtype=np.bool_)
    found[index.find(train)] = True
    blocks = [
        document[start : start + BLOCK_BYTES]
        for document in validation
        for start in range(0, len(document) - BLOCK_BYTES + 1, BLOCK_BYTES)
    ]
    hits = [any(block in document for document in train) for block in blocks]
    assert index.share(found) == (np.mean(hits) if hits else 0.0)


def test_a_block_is_found_at_every_offset_and_across_chunks() -> None:
    block = bytes(range(64, 128))
    index = build_index(block_hashes([block]))
    for offset in [*range(70), *range(shingles._CHUNK_BYTES - 70, shingles._CHUNK_BYTES + 70)]:
        assert index.find([bytes(offset) + block + bytes(9)]).tolist() == [0]


def test_a_block_split_over_two_documents_is_not_found() -> None:
    block = bytes(range(64, 128))
    index = build_index(block_hashes([block]))
    assert index.find([block[:40], block[40:]]).size == 0
    assert index.find([block[1:], block[:-1]]).size == 0


@given(st.binary(min_size=64, max_size=300))
def test_equal_windows_have_equal_hashes_and_others_differ(data: bytes) -> None:
    hashes = window_hashes(np.frombuffer(data, dtype=np.uint8))
    windows = [data[start : start + 64] for start in range(len(data) - 63)]
    assert len(set(hashes.tolist())) == len(set(windows))
    assert dict(zip(windows, hashes.tolist(), strict=True)) == {
        window: int(window_hashes(np.frombuffer(window, dtype=np.uint8))[0]) for window in windows
    }
