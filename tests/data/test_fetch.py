"""Fetching: whatever the network and the disk do, files are whole and verified or the fetch says why not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from bench.data import transport
from bench.data.fetch import fetch, is_verified
from bench.data.manifest import Manifest
from bench.data.transport import Retry
from bench.errors import DataError
from tests.data.hub import Hub

QUICK = Retry(max_attempts=4, base_s=0.01, cap_s=0.02, timeout_s=5)
REPOSITORY = Path(__file__).parents[2]


def _fetch(hub: Hub, folder: Path, endpoint: str | None = None, workers: int = 2) -> tuple[Path, ...]:
    manifest = hub.manifest()
    return fetch(
        manifest, manifest.files, folder, endpoint=endpoint or hub.endpoint, workers=workers, retry=QUICK
    )


def _assert_whole(hub: Hub, folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in hub.files} == hub.files
    assert not list(folder.glob("*.part"))


def test_files_arrive_whole_and_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    _fetch(hub, tmp_path)
    _assert_whole(hub, tmp_path)
    asked = len(hub.requests)
    _fetch(hub, tmp_path)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("faults", [["429"], ["503", "500"], ["cut"], ["cut", "429", "cut"], ["cut"] * 7])
def test_a_flaky_server_is_asked_again(hub: Hub, tmp_path: Path, faults: list[str]) -> None:
    hub.faults = list(faults)
    _fetch(hub, tmp_path, workers=1)
    _assert_whole(hub, tmp_path)
    assert len(hub.requests) == len(hub.files) + len(faults)


def test_a_cut_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.faults = ["cut"]
    _fetch(hub, tmp_path, workers=1)
    ranges = [asked for _, asked, _ in hub.requests if asked]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").rstrip("-")) <= 150_001


def test_a_server_that_ignores_range_starts_the_file_anew(hub: Hub, tmp_path: Path) -> None:
    hub.faults, hub.ignores_range = ["cut"], True
    _fetch(hub, tmp_path, workers=1)
    _assert_whole(hub, tmp_path)


def test_a_part_of_another_file_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shard_00000.parquet.part").write_bytes(b"x" * 1000)
    (tmp_path / "shard_00001.parquet.part").write_bytes(b"x" * 10_000_000)
    _fetch(hub, tmp_path)
    _assert_whole(hub, tmp_path)


def test_retry_after_is_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waits: list[float | None] = []
    waiting = threading.Event.wait

    def recorded(event: threading.Event, timeout: float | None = None) -> bool:
        waits.append(timeout)
        return waiting(event, timeout)

    assert transport._retry_after_s("7") == 7.0
    assert transport._retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert transport._retry_after_s("soon") is None
    event = threading.Event()
    monkeypatch.setattr(threading.Event, "wait", recorded)
    failures = iter([transport.Transient("busy", 0.05)])

    def attempt() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert transport.retrying(attempt, QUICK, event) == "done"
    assert len(waits) == 1
    assert 0.05 <= (waits[0] or 0) <= 0.05 + QUICK.base_s


def test_an_endless_429_ends_as_an_error_that_names_the_url(hub: Hub, tmp_path: Path) -> None:
    hub.faults = ["429"] * 50
    with pytest.raises(DataError, match=r"HTTP 429.*given up after 4"):
        _fetch(hub, tmp_path, workers=1)


@pytest.mark.parametrize(("fault", "hint"), [("403", "HF_TOKEN"), ("404", "revision")])
def test_refusals_are_not_repeated(hub: Hub, tmp_path: Path, fault: str, hint: str) -> None:
    hub.faults = [fault]
    with pytest.raises(DataError) as caught:
        _fetch(hub, tmp_path, workers=1)
    assert hint in caught.value.hint
    assert len(hub.requests) <= len(hub.files)


def test_wrong_content_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.faults = ["wrong"] * 3
    with pytest.raises(DataError, match="SHA-256"):
        _fetch(hub, tmp_path, workers=1)
    assert not (tmp_path / "shard_00000.parquet").exists()
    assert not (tmp_path / "shard_00000.parquet.part").exists()


def test_a_changed_file_is_noticed_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    paths = _fetch(hub, tmp_path)
    data = bytearray(paths[0].read_bytes())
    data[100] ^= 1
    paths[0].write_bytes(bytes(data))
    assert not is_verified(tmp_path, hub.manifest().files[0])
    _fetch(hub, tmp_path)
    _assert_whole(hub, tmp_path)


def test_a_file_without_a_hash_is_never_fetched(hub: Hub, tmp_path: Path) -> None:
    manifest = hub.manifest()
    bare = msgspec.structs.replace(manifest.files[0], sha256=None)
    with pytest.raises(DataError) as caught:
        fetch(manifest, [bare], tmp_path, endpoint=hub.endpoint)
    assert caught.value.hint == "python -m bench data pin demo"
    assert not hub.requests


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_folder_is_a_source(hub: Hub, tmp_path: Path, scheme: str) -> None:
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    for name, data in hub.files.items():
        (mirror / name).write_bytes(data)
    _fetch(hub, tmp_path / "out", endpoint=mirror.as_uri() if scheme else str(mirror))
    _assert_whole(hub, tmp_path / "out")
    (mirror / "shard_00001.parquet").unlink()
    with pytest.raises(DataError, match=r"shard_00001\.parquet"):
        _fetch(hub, tmp_path / "other", endpoint=str(mirror))


def test_two_fetches_at_once_share_the_work(hub: Hub, tmp_path: Path) -> None:
    threads = [threading.Thread(target=_fetch, args=(hub, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _assert_whole(hub, tmp_path)
    assert len(hub.requests) == len(hub.files)


def test_an_unwritable_folder_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write"):
        _fetch(hub, tmp_path / "file" / "folder")


_LIMITED = """
import resource, sys
from pathlib import Path
import msgspec
from bench.data.fetch import fetch
from bench.data.manifest import Manifest
from bench.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
manifest = msgspec.json.decode(sys.argv[1], type=Manifest)
try:
    fetch(manifest, manifest.files, Path(sys.argv[3]), endpoint=sys.argv[2])
except DataError as error:
    print(error.message)
"""


def test_a_full_disk_is_an_error_naming_path_and_bytes(hub: Hub, tmp_path: Path) -> None:
    # A limit on file size fails a write in the middle, as a full disk does.
    command = [
        sys.executable,
        "-c",
        _LIMITED,
        msgspec.json.encode(hub.manifest()).decode(),
        hub.endpoint,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True)
    assert "no room for" in done.stdout
    assert "300,003 bytes needed" in done.stdout
    assert not list(tmp_path.glob("*.parquet"))
    _fetch(hub, tmp_path)  # and the part that was left is resumed
    _assert_whole(hub, tmp_path)


def test_too_little_room_is_known_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    manifest: Manifest = hub.manifest()
    huge = msgspec.structs.replace(manifest.files[0], bytes=2 * free_bytes + 1)
    with pytest.raises(DataError, match="bytes needed"):
        fetch(manifest, [huge], tmp_path, endpoint=hub.endpoint, retry=QUICK)
    assert not hub.requests
