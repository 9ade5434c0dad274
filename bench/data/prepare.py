"""Text to tokens on disk: once for each corpus and tokenizer, in parallel, safe to kill at any moment.

Each shard becomes a part, a folder renamed into place when whole; the finished corpus is joined from the
parts in a folder of its own and renamed last. The bytes do not depend on workers or on interruptions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bench.data.corpus import Corpus, content_sha256
from bench.data.part import PartJob, digest_list, prepare_part
from bench.data.prepared import (
    FORMAT,
    Prepared,
    PreparedFacts,
    SplitFacts,
    StoredFile,
    open_prepared,
    prepared_folder,
)
from bench.data.shingles import block_hashes, build_index
from bench.data.storage import locked, sync_folder, write_all, write_atomic, write_synced, writing
from bench.data.tokenizer import Tokenizer
from bench.data.workers import map_in_order
from bench.errors import DataError

# A worker takes 0.5 to 4 s to start (it imports the main module, maybe torch), in which one process
# prepares up to 32 MB.
_BYTES_PER_WORKER = 32 << 20


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    data_folder: Path,
    *,
    workers: int = 1,
    on_part: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Opens the prepared form of a corpus, making it first where it is not there.

    `on_part(done, total)` hears of each shard.

    Raises:
        DataError: a shard changed since `open_corpus`, or the disk is full.
    """
    folder = prepared_folder(data_folder, corpus.sha256, tokenizer.sha256)
    if not folder.exists():
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():  # another process may have made it while this one waited
                _build(corpus, tokenizer, folder, workers, on_part)
    return open_prepared(folder)


def _build(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    workers: int,
    on_part: Callable[[int, int], None] | None,
) -> None:
    building = folder.with_name(f"{folder.name}.building")
    _write_tools(corpus, tokenizer, building)
    jobs = [PartJob(index, shard, None, building) for index, shard in enumerate(corpus.train)]
    jobs.append(PartJob(len(jobs), corpus.validation, corpus.num_validation_documents, building))
    workers = min(workers, 1 + (corpus.train_bytes + corpus.validation_bytes) // _BYTES_PER_WORKER)
    for done, _ in enumerate(map_in_order(prepare_part, jobs, workers), start=1):
        if on_part is not None:
            on_part(done, len(jobs))
    _join(corpus, tokenizer, [job.folder for job in jobs], building / "whole")
    with writing(folder, 0):
        os.rename(building / "whole", folder)
        sync_folder(folder.parent)
    shutil.rmtree(building)


def _write_tools(corpus: Corpus, tokenizer: Tokenizer, building: Path) -> None:
    """What every worker needs: the tokenizer, and the validation text's digests and blocks."""
    texts = [document.text.encode() for document in corpus.documents("validation")]
    write_atomic(building / "blocks", block_hashes(texts).tobytes())
    write_atomic(building / "digests", b"".join(hashlib.sha256(text).digest() for text in texts))
    tokenizer.save(building / "tokenizer.json")


def _join(corpus: Corpus, tokenizer: Tokenizer, parts: list[Path], whole: Path) -> None:
    """Joins the parts into `whole`, checking that they are the corpus and that the splits are disjoint."""
    train, validation = parts[:-1], parts[-1]
    train_digests = ((part / "digests").read_bytes() for part in train)
    content = content_sha256(train_digests, (validation / "digests").read_bytes())
    if content != corpus.sha256:
        raise DataError(
            f"{corpus.name} changed while it was prepared", f"delete {whole.parent} and run again"
        )
    _check_disjoint(train, validation)
    with writing(whole, sum((part / "tokens").stat().st_size for part in parts)):
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        for split, folders in (("train", train), ("validation", [validation])):
            _join_split(split, folders, whole)
        digests = digest_list((validation / "digests").read_bytes())
        write_synced(whole / "validation.sha256", "".join(f"{digest.hex()}\n" for digest in digests).encode())
        shutil.copyfile(validation / "sizes", whole / "validation.sizes")
        write_synced(whole / "byte_lengths", tokenizer.byte_lengths.tobytes())
        tokenizer.save(whole / "tokenizer.json")
    write_atomic(
        whole / "facts.json", msgspec.json.encode(_facts(corpus, tokenizer, train, validation, whole))
    )


def _join_split(split: str, parts: list[Path], whole: Path) -> None:
    lengths = np.concatenate([_kept_lengths(part) for part in parts])
    if not lengths.size:
        raise DataError(
            f"no {split} documents are left", "every training document is a copy of a validation one"
        )
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
    write_synced(whole / f"{split}.offsets", offsets.tobytes())
    descriptor = os.open(whole / f"{split}.tokens", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for part in parts:
            write_all(descriptor, (part / "tokens").read_bytes())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept_lengths(part: Path) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = np.fromfile(part / "lengths", dtype=np.int64)
    return lengths[lengths > 0]


def _check_disjoint(train: list[Path], validation: Path) -> None:
    """Compares digests once more, by another path than the removal took."""
    held_out = frozenset(digest_list((validation / "digests").read_bytes()))
    for part in train:
        rows = np.fromfile(part / "digests", dtype=np.uint8).reshape(-1, 32)
        kept = rows[np.fromfile(part / "lengths", dtype=np.int64) > 0]
        shared = held_out.intersection(digest_list(kept.tobytes()))
        if shared:
            raise DataError(
                f"{len(shared)} documents are in training and validation: {min(shared).hex()}",
                f"delete {part.parent} and run again",
            )


def _facts(
    corpus: Corpus, tokenizer: Tokenizer, train: list[Path], validation: Path, whole: Path
) -> PreparedFacts:
    index = build_index(np.fromfile(whole.parent / "blocks", dtype=np.uint64))
    found = np.zeros(index.hashes.size, dtype=np.bool_)
    for part in train:
        found |= np.fromfile(part / "found", dtype=np.bool_)
    removed = sum(int((np.fromfile(part / "lengths", dtype=np.int64) == 0).sum()) for part in train)
    files = {path.name: _stored(path) for path in sorted(whole.iterdir())}
    return PreparedFacts(
        format=FORMAT,
        corpus_sha256=corpus.sha256,
        tokenizer_sha256=tokenizer.sha256,
        validation_sha256=files["validation.sha256"].sha256,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        train=_split_facts(train),
        validation=_split_facts([validation]),
        num_duplicates_removed=removed,
        num_validation_blocks=int(index.counts.sum()),
        shingle_overlap=index.share(found),
        files=files,
    )


def _split_facts(parts: list[Path]) -> SplitFacts:
    lengths = [np.fromfile(part / "lengths", dtype=np.int64) for part in parts]
    sizes = [np.fromfile(part / "sizes", dtype=np.int64) for part in parts]
    return SplitFacts(
        num_documents=sum(int((part > 0).sum()) for part in lengths),
        num_tokens=sum(int(part.sum()) for part in lengths),
        text_bytes=sum(int(size[length > 0].sum()) for size, length in zip(sizes, lengths, strict=True)),
    )


def _stored(path: Path) -> StoredFile:
    with path.open("rb") as file:
        return StoredFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
