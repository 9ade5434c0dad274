"""Records on the disk: written once, whole or not at all."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DataError, VerificationFailed
from bench.records.schema import encode
from bench.records.store import next_seed_index, read, read_all, write_once
from bench.records.verify import verify
from tests.records.sample import ROOT, quick_track, sample, stored

# Writes records for ever in a process of its own, to be killed at any moment.
WRITER = """
import sys
from pathlib import Path
from bench.records.store import write_once
from tests.records.sample import sample
records = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10**6):
    write_once(records, *sample(seed_index=number))
"""
LIMITED = """
import resource, sys
from pathlib import Path
from bench.errors import DataError
from bench.records.store import write_once
from tests.records.sample import sample
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
made = sample()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_once(Path(sys.argv[1]), *made)
except DataError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


def visible(records: Path) -> list[Path]:
    """Every file below a folder that has its final name."""
    return [path for path in records.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_what_is_written_is_read_and_holds(tmp_path: Path) -> None:
    record, events = sample()
    one = stored(tmp_path, record, events)
    assert one.record == record
    assert one.events_path.read_bytes() == events
    assert one.path.parent == tmp_path / "cpu-quick" / "quick"
    assert verify(one, quick_track()) == []
    assert read_all(tmp_path) == [one]
    assert {path.suffix for path in visible(tmp_path)} == {".json", ".jsonl"}
    assert list(tmp_path.rglob(".*")) == []


def test_never_over_an_existing_record(tmp_path: Path) -> None:
    record, events = sample()
    path = write_once(tmp_path, record, events)
    before = path.stat()
    with pytest.raises(DataError):
        write_once(tmp_path, record, events)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == encode(record)


def test_never_over_another_log(tmp_path: Path) -> None:
    record, events = sample()
    path = write_once(tmp_path, record, events)
    path.unlink()
    log = path.with_suffix(".events.jsonl")
    log.write_bytes(b"another\n")
    with pytest.raises(DataError):
        write_once(tmp_path, record, events)
    assert log.read_bytes() == b"another\n"
    assert not path.exists()


def test_a_log_left_by_a_run_cut_off_does_not_stop_its_record(tmp_path: Path) -> None:
    record, events = sample()
    path = write_once(tmp_path, record, events)
    path.unlink()
    assert write_once(tmp_path, record, events) == path
    assert verify(read(path), quick_track()) == []


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_error_at_any_point_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    record, events = sample()
    real, counter = getattr(os, call), itertools.count(1)

    def failing(*arguments: object) -> object:
        if next(counter) == nth:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(DataError, match="No space left") as caught:
            write_once(tmp_path, record, events)
    assert "--resume" in caught.value.hint
    assert read_all(tmp_path) == []
    assert list(tmp_path.rglob(".*")) == []
    assert all(path.read_bytes() == events for path in visible(tmp_path))
    assert verify(read(write_once(tmp_path, record, events)), quick_track()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits here")
@pytest.mark.parametrize("limit", [100, 4000, 12_000])
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, limit: int) -> None:
    run = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    record, events = sample()
    sizes = {"log": len(events), "record": len(encode(record))}
    fits = limit >= max(sizes.values())
    assert done.returncode == (0 if fits else DataError.exit_code), done.stderr
    assert all(path.read_bytes() in (events, encode(record)) for path in visible(tmp_path))
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize("after_s", [0.0, 0.013, 0.041])
def test_a_kill_at_any_moment_leaves_whole_records(tmp_path: Path, after_s: float) -> None:
    run = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        process.kill()
    track = quick_track()
    kept = read_all(tmp_path)
    assert [problem for one in kept for problem in verify(one, track)] == []
    assert len({one.path for one in kept}) == len(
        [path for path in visible(tmp_path) if path.suffix == ".json"]
    )


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cpu-quick").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cpu-quick"):
        write_once(tmp_path, *sample())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="ermission"):
        write_once(tmp_path, *sample())


@given(
    taken=st.sets(st.integers(0, 12)), noise=st.lists(st.sampled_from(["x-1.json", "3.json", "-1-a.json"]))
)
def test_the_next_seed_is_the_lowest_without_a_record(
    tmp_path_factory: pytest.TempPathFactory, taken: set[int], noise: list[str]
) -> None:
    records = tmp_path_factory.mktemp("records")
    folder = records / "cpu-quick" / "quick"
    folder.mkdir(parents=True)
    for name in [*(f"{index}-0123abcd.json" for index in taken), *noise]:
        (folder / name).touch()
        (folder / name).with_suffix(".events.jsonl").touch()
    index = next_seed_index(records, "cpu-quick", "quick")
    assert index not in taken
    assert set(range(index)) <= taken
    assert next_seed_index(records, "cpu-quick", "another") == 0


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema":"\xff"}', b"[" * 100_000, b'{"schema": 2}']
)
def test_what_is_not_a_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0-00000000.json"
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"0-00000000\.json"):
        read(path)


def test_a_record_that_is_not_there_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(tmp_path / "0-00000000.json")
