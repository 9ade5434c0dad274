"""Corpora: what is read, in which order, and what every fault of a shard says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.corpus import open_corpus, tokenizer_for
from bench.data.manifest import FileEntry, Manifest
from bench.data.stdlib_source import DOCUMENT_CHARS, candidate_files, cut, is_validation, stdlib_root
from bench.errors import DataError, RecipeError
from tests.data.shards import open_tiny, texts, write_folder, write_shard

source_text = st.text(st.sampled_from("ab \n\n\n#)]@")).map(lambda text: text * 200)


@given(source_text)
def test_cutting_loses_nothing_and_keeps_to_the_size(text: str) -> None:
    documents = list(cut(text))
    assert "".join(documents) == text
    assert all(documents)
    assert all(len(document) <= DOCUMENT_CHARS or "\n" not in document[:-1] for document in documents)


def test_cuts_fall_before_top_level_statements_where_they_can() -> None:
    body = "".join(
        f"@decorated\ndef name_{index}():\n    x = 1\n\n    return x\n\n\n" for index in range(200)
    )
    documents = list(cut(body))
    assert len(documents) > 1
    assert all(document.startswith("@decorated\ndef ") for document in documents)


def test_stdlib_is_prose_like_disjoint_and_in_order(tmp_path: Path) -> None:
    corpus = open_corpus("stdlib", tmp_path, validation_bytes=1 << 30)
    train = [name for shard in corpus.train for name in shard.names]
    held_out = corpus.validation.names
    assert train == sorted(train)
    assert not set(train) & set(held_out)
    assert all(map(is_validation, held_out))
    assert not any(map(is_validation, train))
    assert 0.01 < len(held_out) / len(train) < 0.08
    unwanted = (
        "test/",
        "idlelib/",
        "site-packages/",
        "_sysconfigdata",
        "config-",
        "lib2to3/",
        "pydoc_data/topics",
    )
    assert not [name for name in (*train, *held_out) if name.startswith(unwanted)]
    assert "argparse.py" in (*train, *held_out)
    assert corpus.train_bytes > 4_000_000


def test_a_second_opening_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    first = open_tiny(tmp_path)
    monkeypatch.setattr("bench.data.corpus.digest_shard", None)
    assert open_tiny(tmp_path) == first


def test_the_hash_is_of_the_documents_in_order_with_their_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    expected = hashlib.sha256()
    for split in ("train", "validation"):
        for document in corpus.documents(split):
            expected.update(split[:1].encode() + hashlib.sha256(document.text.encode()).digest())
    assert corpus.sha256 == expected.hexdigest()
    for file in corpus.files:
        data = (tmp_path / "tiny" / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_workers_and_row_groups_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    alone = open_tiny(tmp_path)
    for path in (tmp_path / "tiny").iterdir():
        pq.write_table(pq.read_table(path), path, row_group_size=7)
    monkeypatch.setattr("bench.data.corpus._BYTES_PER_WORKER", 1)
    together = open_corpus("folder:tiny", tmp_path, validation_bytes=1 << 30, workers=2)
    assert together.sha256 == alone.sha256
    assert together.files != alone.files


@pytest.mark.parametrize("change", ["content", "order", "split"])
def test_any_change_of_the_text_changes_the_hash(tmp_path: Path, change: str) -> None:
    folder = write_folder(tmp_path)
    before = open_tiny(tmp_path).sha256
    first = pq.read_table(folder / "shard_00000.parquet").column("text").to_pylist()
    if change == "content":
        write_shard(folder / "shard_00000.parquet", [*first[:-1], first[-1] + "."])
    elif change == "order":
        write_shard(folder / "shard_00000.parquet", first[::-1])
    else:
        write_shard(folder / "shard_00003.parquet", texts(40, 1000))
    assert open_tiny(tmp_path).sha256 != before


def test_validation_is_the_first_documents_within_the_limit(tmp_path: Path) -> None:
    write_folder(tmp_path)
    sizes = [len(text.encode()) for text in texts(40, 999)]
    for limit in (1, sizes[0], sum(sizes[:5]), sum(sizes[:5]) - 1, 1 << 30):
        corpus = open_tiny(tmp_path, validation_bytes=limit)
        chosen = [len(document.text.encode()) for document in corpus.documents("validation")]
        assert chosen == sizes[: len(chosen)]
        assert sum(chosen) == corpus.validation_bytes
        assert sum(chosen) <= limit or len(chosen) == 1
        assert len(chosen) == len(sizes) or sum(sizes[: len(chosen) + 1]) > limit


@pytest.mark.parametrize(
    "name", ["folder:../tiny", "folder:/etc", "folder:", "folder:a/b", "folder:A", "nope", ""]
)
def test_names_are_names_and_not_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="unknown corpus"):
        open_corpus(name, tmp_path, validation_bytes=1)


@pytest.mark.parametrize("fault", ["truncated", "empty file", "no column", "empty shard", "null", "not text"])
def test_a_bad_shard_is_named(tmp_path: Path, fault: str) -> None:
    path = write_folder(tmp_path) / "shard_00001.parquet"
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif fault == "empty file":
        path.write_bytes(b"")
    elif fault == "no column":
        write_shard(path, ["a"], column="content")
    elif fault == "empty shard":
        write_shard(path, [])
    elif fault == "null":
        pq.write_table(pa.table({"text": ["a", None]}), path)
    else:
        pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(DataError, match=r"shard_00001\.parquet"):
        open_tiny(tmp_path)


def test_one_shard_is_not_a_corpus(tmp_path: Path) -> None:
    write_shard(tmp_path / "tiny" / "a.parquet", ["text"])
    with pytest.raises(DataError, match="1 Parquet files"):
        open_tiny(tmp_path)


def test_a_data_set_reads_the_shards_that_its_manifest_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, name="shards/demo", num_train=3)
    entries = tuple(_entry(path) for path in sorted(folder.iterdir()))
    manifest = Manifest(name="demo", repository="owner/demo", revision="0" * 40, licence="CC0-1.0",
                        licence_source="https://example.org", files=entries)  # fmt: skip
    corpus = open_corpus("demo", tmp_path, shards=2, validation_bytes=10**6, manifest=manifest)
    assert [file.name for file in corpus.files] == [entries[0].name, entries[1].name, entries[3].name]
    with pytest.raises(RecipeError):
        open_corpus("demo", tmp_path, shards=4, validation_bytes=10**6, manifest=manifest)
    write_shard(folder / entries[1].name, texts(300, 77))
    with pytest.raises(DataError, match="is not the manifest's"):
        open_corpus("demo", tmp_path, shards=2, validation_bytes=10**6, manifest=manifest)
    os.unlink(folder / entries[1].name)
    with pytest.raises(DataError, match="missing"):
        open_corpus("demo", tmp_path, shards=2, validation_bytes=10**6, manifest=manifest)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_tokenizer_is_trained_once_for_each_corpus_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    first = tokenizer_for(corpus, 300, tmp_path, max_chars=10**6)
    assert tokenizer_for(corpus, 310, tmp_path, max_chars=10**6).sha256 != first.sha256
    assert tokenizer_for(corpus, 300, tmp_path, max_chars=2000).sha256 != first.sha256
    monkeypatch.setattr("bench.data.corpus.Tokenizer.train", None)
    assert tokenizer_for(corpus, 300, tmp_path, 10**6, sha256=first.sha256).sha256 == first.sha256
    with pytest.raises(DataError):
        tokenizer_for(corpus, 300, tmp_path, 10**6, sha256="f" * 64)


def test_no_candidate_of_the_standard_library_is_outside_it() -> None:
    root = stdlib_root()
    assert all((root / name).is_file() and ".." not in name for name in candidate_files(root))


def test_an_unreadable_cache_is_made_again(tmp_path: Path) -> None:
    write_folder(tmp_path)
    corpus = open_tiny(tmp_path)
    (cache,) = (tmp_path / "corpora").iterdir()
    cache.write_bytes(msgspec.json.encode(corpus)[:50])
    assert open_tiny(tmp_path) == corpus
