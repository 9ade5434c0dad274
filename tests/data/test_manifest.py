"""Manifests: pinned from a real server over pages, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data.manifest import load_manifest, load_source, pin, source_names
from bench.errors import DataError, RecipeError
from tests.data.hub import Hub


def test_pin_follows_every_page_and_keeps_the_token_on_the_asked_host(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    manifest = pin(hub.source(), endpoint=hub.endpoint, token="secret", path=path)
    assert manifest == hub.manifest() == load_manifest(path)
    assert [request[2] for request in hub.requests] == ["Bearer secret"] * (1 + len(hub.files))


def test_a_file_without_lfs_is_pinned_without_a_hash(hub: Hub, tmp_path: Path) -> None:
    hub.without_lfs = True
    manifest = pin(hub.source(), endpoint=hub.endpoint, token=None, path=tmp_path / "demo.json")
    assert [entry.sha256 for entry in manifest.files] == [None] * 3


def test_pin_names_the_file_that_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    source = hub.source()
    del hub.files["shard_00001.parquet"]
    with pytest.raises(DataError, match=r"shard_00001\.parquet"):
        pin(source, endpoint=hub.endpoint, token=None, path=tmp_path / "demo.json")
    assert not (tmp_path / "demo.json").exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"name": "demo"}', b'{"files": [{"name": "../x"}]}'])
def test_a_missing_or_malformed_manifest_says_how_to_pin(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_manifest(path)
    assert caught.value.hint == "bench data pin demo: once, with a network"


def test_described_data_sets_are_complete() -> None:
    assert source_names() == ("climbmix", "fineweb-edu")
    assert load_source("climbmix").file_names()[-1] == "shard_06542.parquet"
    assert load_source("fineweb-edu").file_names()[-1] == "shard_01822.parquet"
    with pytest.raises(RecipeError):
        load_source("../climbmix")


@pytest.mark.parametrize("num_train", [0, 3])
def test_too_many_or_no_shards_are_refused(hub: Hub, num_train: int) -> None:
    with pytest.raises(RecipeError, match="has 2 training shards"):
        hub.manifest().first_shards(num_train)


def test_first_shards_always_end_with_validation(hub: Hub) -> None:
    names = [entry.name for entry in hub.manifest().first_shards(1)]
    assert names == ["shard_00000.parquet", "shard_00002.parquet"]
