"""Preparing: the tokens are the documents, the splits are disjoint, and a kill changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.data.corpus import tokenizer_for
from bench.data.prepare import prepare
from bench.data.prepared import Prepared, open_prepared
from bench.data.tokenizer import Tokenizer
from bench.errors import DataError
from tests.data.shards import open_tiny, prepare_tiny, texts, write_folder, write_shard

REPOSITORY = Path(__file__).parents[2]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_are_the_documents_in_order(prepared: Prepared) -> None:
    tokenizer = Tokenizer.load(prepared.tokenizer_path, prepared.facts.tokenizer_sha256)
    expected = {"train": texts(300, 0) + texts(300, 1), "validation": texts(40, 999)}
    for split, documents in (("train", prepared.train), ("validation", prepared.validation)):
        assert documents.num_documents == len(expected[split])
        for index, text in enumerate(expected[split]):
            ids = documents.tokens[documents.offsets[index] : documents.offsets[index + 1]].tolist()
            assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert prepared.train.tokens.dtype == np.uint16


def test_facts_agree_with_the_files(prepared: Prepared) -> None:
    facts = prepared.facts
    sizes = [len(text.encode()) for text in texts(40, 999)]
    assert prepared.validation_sizes.tolist() == sizes
    assert facts.validation.text_bytes == sum(sizes)
    assert facts.train.num_tokens == prepared.train.tokens.size
    assert prepared.byte_lengths[prepared.validation.tokens].sum() == sum(sizes)
    listed = prepared.validation_documents()
    assert listed == tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts(40, 999))
    assert (
        facts.validation_sha256 == hashlib.sha256("".join(f"{one}\n" for one in listed).encode()).hexdigest()
    )
    open_prepared(prepared.folder, verify_hashes=True)


def test_copies_of_validation_documents_leave_training(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    held_out = texts(40, 999)
    write_shard(folder / "shard_00001.parquet", [*texts(50, 1), held_out[3], held_out[3], held_out[7]])
    corpus = open_tiny(tmp_path)
    prepared = prepare(corpus, tokenizer_for(corpus, 320, tmp_path, 10**6), tmp_path)
    assert prepared.facts.num_duplicates_removed == 3
    assert prepared.train.num_documents == prepared.facts.train.num_documents == 350
    assert prepared.facts.shingle_overlap == 0.0


def test_overlap_is_the_share_of_validation_blocks_in_training(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    # Part of one held-out document, at another offset and inside another document.
    longest = max(texts(40, 999), key=len)
    write_shard(folder / "shard_00001.parquet", [*texts(50, 1), "before " + longest + " after"])
    corpus = open_tiny(tmp_path)
    facts = prepare(corpus, tokenizer_for(corpus, 320, tmp_path, 10**6), tmp_path).facts
    assert facts.num_duplicates_removed == 0
    blocks = [len(text.encode()) // 64 for text in texts(40, 999)]
    assert facts.num_validation_blocks == sum(blocks)
    assert facts.shingle_overlap == len(longest.encode()) // 64 / sum(blocks)


def test_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, num_train=1)
    write_shard(folder / "shard_00000.parquet", texts(40, 999))
    corpus = open_tiny(tmp_path)
    with pytest.raises(DataError, match="no train documents are left"):
        prepare(corpus, tokenizer_for(corpus, 320, tmp_path, 10**6), tmp_path)


def test_workers_change_nothing_and_prepared_is_not_made_again(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.prepare._BYTES_PER_WORKER", 1)
    write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    tokenizer = tokenizer_for(corpus, 320, tmp_path, 10**6)
    heard: list[tuple[int, int]] = []
    again = prepare(
        corpus, tokenizer, tmp_path, workers=2, on_part=lambda done, total: heard.append((done, total))
    )
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert _contents(again.folder) == _contents(prepared.folder)
    monkeypatch.setattr("bench.data.prepare._build", None)
    assert prepare(corpus, tokenizer, tmp_path).facts == again.facts


_PREPARE = """
import sys
from pathlib import Path
import bench.data.prepare
from bench.data.prepare import prepare
from tests.data.shards import open_tiny
from bench.data.corpus import tokenizer_for
if __name__ == "__main__":
    bench.data.prepare._BYTES_PER_WORKER = 1
    folder = Path(sys.argv[1])
    corpus = open_tiny(folder)
    tokenizer = tokenizer_for(corpus, 320, folder, 10**6)
    print("started", flush=True)
    prepare(corpus, tokenizer, folder, workers=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Six shards prepared in one go; the kill tests copy its shards."""
    data_folder = tmp_path_factory.mktemp("whole")
    write_folder(data_folder, num_train=6, documents_a_shard=800)
    corpus = open_tiny(data_folder)
    return prepare(corpus, tokenizer_for(corpus, 320, data_folder, 10**6), data_folder)


@pytest.mark.parametrize(
    ("workers", "parts_done"),
    [(1, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0), (1, 5), (2, 1), (2, 4)])],
)
def test_a_kill_and_a_second_run_give_the_same_bytes(
    tmp_path: Path, uninterrupted: Prepared, workers: int, parts_done: int
) -> None:
    shutil.copytree(uninterrupted.folder.parents[1] / "tiny", tmp_path / "tiny")
    script = tmp_path / "script.py"
    script.write_text(_PREPARE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(tmp_path), str(workers)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        _wait_for_parts(tmp_path / "prepared", parts_done, process)
        process.send_signal(signal.SIGKILL)
    assert list((tmp_path / "prepared").glob("*.building"))
    corpus = open_tiny(tmp_path)
    again = prepare(corpus, tokenizer_for(corpus, 320, tmp_path, 10**6), tmp_path)
    assert _contents(again.folder) == _contents(uninterrupted.folder)
    assert not list((tmp_path / "prepared").glob("*.building"))


def _wait_for_parts(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 60
    while len(list(folder.glob("*.building/0????"))) < count or not list(folder.glob("*.building")):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.002)


def test_a_shard_that_changes_before_it_is_prepared_is_noticed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    tokenizer = tokenizer_for(corpus, 320, tmp_path, 10**6)
    documents = pq.read_table(folder / "shard_00000.parquet").column("text").to_pylist()
    write_shard(folder / "shard_00000.parquet", [*documents[:-1], "another"])
    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(corpus, tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["train.tokens", "validation.offsets", "byte_lengths", "facts.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = prepare_tiny(tmp_path).folder
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError):
        open_prepared(folder)
    if name != "facts.json":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        open_prepared(folder)
        with pytest.raises(DataError, match="has changed"):
            open_prepared(folder, verify_hashes=True)
    path.unlink()
    with pytest.raises(DataError):
        open_prepared(folder)


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    base = tokenizer_for(corpus, 320, tmp_path, 10**6)
    merges = [base._encoding.decode_single_token_bytes(rank) for rank in range(base.bos_id)]
    # Tokens that no text reaches by merging, so that ids of <|bos|> pass 65,535.
    filler = [b"\xff\xfe" + index.to_bytes(3, "big") for index in range(70_000 - len(merges))]
    wide = prepare(corpus, Tokenizer([*merges, *filler]), tmp_path)
    assert wide.train.tokens.dtype == np.uint32
    assert wide.train.tokens[0] == wide.bos_id == 70_000


_LIMITED = """
import resource, sys
from pathlib import Path
from bench.data.corpus import tokenizer_for
from bench.data.prepare import prepare
from bench.errors import DataError
from tests.data.shards import open_tiny
folder = Path(sys.argv[1])
corpus = open_tiny(folder)
tokenizer = tokenizer_for(corpus, 320, folder, 10**6)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    prepare(corpus, tokenizer, folder)
except DataError as error:
    print(error.message)
"""


def test_a_full_disk_is_an_error_and_the_next_run_finishes(tmp_path: Path, prepared: Prepared) -> None:
    write_folder(tmp_path)
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True)
    assert "no room for" in done.stdout
    assert "bytes needed" in done.stdout
    assert _contents(prepare_tiny(tmp_path).folder) == _contents(prepared.folder)
