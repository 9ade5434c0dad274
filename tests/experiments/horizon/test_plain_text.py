"""Plain text as documents: nothing is lost, articles are kept apart, files become shards once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.corpus import open_corpus
from bench.errors import DataError
from bench.experiments.horizon.plain_text import corpus_of, documents

ARTICLES = " \n = One = \n\n Text . \n = = Part = = \n\n More . \n\n = Two = \n\n Other . \n"


@given(st.text(max_size=150), st.sampled_from([1, 60]))
def test_nothing_but_blank_pieces_is_lost(text: str, times: int) -> None:
    whole = (text + "\n") * times
    assert "".join("".join(documents(whole)).split()) == "".join(whole.split())


def test_articles_begin_at_their_titles_and_not_at_their_parts() -> None:
    one, two = documents(ARTICLES)
    assert one.startswith(" = One = ")
    assert "= = Part = =" in one
    assert two.startswith(" = Two = ")


def test_other_text_is_cut_at_lines() -> None:
    pieces = documents("a line of words\n" * 2000)
    assert len(pieces) == 4
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_folder_of_text_is_a_corpus_whose_last_file_is_validation(tmp_path: Path) -> None:
    folder = tmp_path / "wiki"
    folder.mkdir()
    (folder / "train.txt").write_text(ARTICLES * 3, encoding="utf-8")
    (folder / "valid.txt").write_text(" = Last = \n The end . \n", encoding="utf-8")
    name = corpus_of("folder:wiki", tmp_path)
    assert name == "folder:wiki.documents"
    corpus = open_corpus(name, tmp_path, validation_bytes=10**6)
    assert corpus.num_train_documents == 6
    assert [document.text for document in corpus.documents("validation")] == [" = Last = \n The end . \n"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "wiki.documents").iterdir()}
    assert corpus_of("folder:wiki", tmp_path) == name
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "wiki.documents").iterdir()} == written


def test_what_is_a_corpus_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.txt").write_text("x")
    (tmp_path / "both" / "a.parquet").write_bytes(b"")
    assert [corpus_of(name, tmp_path) for name in ("folder:both", "folder:none", "stdlib")] == [
        "folder:both",
        "folder:none",
        "stdlib",
    ]


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        corpus_of("folder:latin", tmp_path)
