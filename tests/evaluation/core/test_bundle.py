"""A bundle is its manifest's files, however it came here."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from bench.data.transport import Retry
from bench.errors import DataError
from bench.evaluation.core.bundle import (
    PUBLISHED,
    BundleManifest,
    fetch_bundle,
    open_bundle,
    read_manifest,
    unzip,
)
from bench.evaluation.core.tasks import read_tasks
from tests.evaluation.core.tiny_bundle import files, manifest_of, write_bundle, write_zip

PATIENCE = Retry(max_attempts=3, base_s=0.001, cap_s=0.002, timeout_s=5.0)


@contextmanager
def served(data: bytes, cut_first: bool = False) -> Iterator[tuple[str, list[str | None]]]:
    """An address that serves these bytes, and the ranges asked of it; the first answer may break off."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            asked.append(wanted)
            start = int((wanted or "bytes=0-")[6:].rstrip("-"))
            body = data[start:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut_first and len(asked) == 1 else body)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/eval_bundle.zip", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_published_manifest_is_whole() -> None:
    manifest = read_manifest(PUBLISHED)
    paths = [file.path for file in manifest.files]
    assert len(paths) == 23
    assert {"core.yaml", "eval_meta_data.csv", "eval_data/reading_comprehension/squad.jsonl"} <= set(paths)
    assert sum(file.bytes for file in manifest.files) == 49695392


def test_a_folder_with_its_own_manifest(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path))
    assert not bundle.is_published
    assert bundle.read("core.yaml").startswith(b"icl_tasks:")
    with pytest.raises(DataError, match=r"has no \.\./secret"):
        bundle.read("../secret")


@pytest.mark.parametrize("change", ["flip", "grow", "remove"])
def test_a_changed_file_is_named(tmp_path: Path, change: str) -> None:
    path = write_bundle(tmp_path) / "eval_data" / "schema" / "who.jsonl"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if change == "flip" else path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"who\.jsonl"):
        open_bundle(tmp_path)


def test_without_a_manifest_it_must_be_the_published_one(tmp_path: Path) -> None:
    (write_bundle(tmp_path) / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"is not the manifest's|lacks"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../b", "a//b", "C:\\x", "a/.hidden", ""])
def test_a_manifest_names_no_path_outside(path: str) -> None:
    entry = {"path": path, "bytes": 1, "sha256": "0" * 64}
    document = {"name": "x", "url": "", "source": "", "zip_folder": "x", "files": [entry]}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, BundleManifest)


def test_a_download_is_resumed_unzipped_once_and_verified(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "eval_bundle.zip", files())
    with served(archive.read_bytes(), cut_first=True) as (url, asked):
        manifest = manifest_of(files(), url)
        (tmp_path / "own.json").write_bytes(msgspec.json.encode(manifest))
        folder = tmp_path / "data" / "core" / f"bundle-{manifest.sha256[:16]}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        bundle = fetch_bundle(tmp_path / "data", manifest, PATIENCE)
        assert asked[0] is None
        assert str(asked[1]).startswith("bytes=")
        again = fetch_bundle(tmp_path / "data", manifest, PATIENCE)
        assert len(asked) == 2
    assert bundle == again
    assert [task.label for task in read_tasks(bundle)] == ["pick", "letters", "who", "squad"]
    assert sorted(path.name for path in (tmp_path / "data" / "core").iterdir()) == [".lock", folder.name]


def test_another_zip_is_refused_and_forgotten(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "eval_bundle.zip", {**files(), "core.yaml": b"icl_tasks:\n"})
    refused = pytest.raises(DataError, match=r"not the manifest's core\.yaml")
    with served(archive.read_bytes()) as (url, _), refused:
        fetch_bundle(tmp_path / "data", manifest_of(files(), url), PATIENCE)
    assert not list((tmp_path / "data" / "core").glob("*.zip*"))


def test_members_outside_the_manifest_stay_in_the_zip(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {**files(), "../../escaped": b"x", "more/other.jsonl": b"y"})
    unzip(archive, manifest_of(files()), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert found == set(files())
    assert not (tmp_path / "escaped").exists()


def test_a_link_a_bomb_a_double_and_half_a_zip_are_refused(tmp_path: Path) -> None:
    content, manifest = files(), manifest_of(files())
    link = write_zip(
        tmp_path / "link.zip", {name: data for name, data in content.items() if name != "core.yaml"}
    )
    with zipfile.ZipFile(link, "a") as archive:
        info = zipfile.ZipInfo("eval_bundle/core.yaml")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    bomb = write_zip(tmp_path / "bomb.zip", {**content, "core.yaml": bytes(1 << 24)})
    double = write_zip(tmp_path / "double.zip", content)
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("eval_bundle/core.yaml", b"other")
    half = tmp_path / "half.zip"
    half.write_bytes(double.read_bytes()[:700])
    faults = {link: "1 members", bomb: "not the manifest's", double: "2 members", half: "not a whole zip"}
    for path, message in faults.items():
        with pytest.raises(DataError, match=message):
            unzip(path, manifest, tmp_path / f"out-{path.stem}")
