"""A hub on 127.0.0.1 that speaks the tree API and Range requests, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from bench.data.manifest import FileEntry, Manifest, Source

REPOSITORY = "owner/data"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, how it fails next, and what it was asked."""

    files: dict[str, bytes]
    endpoint: str = ""
    faults: list[str] = field(default_factory=list)  # one is used up by each file request
    requests: list[tuple[str, str | None, str | None]] = field(
        default_factory=list
    )  # path, Range, Authorization
    without_lfs: bool = False
    ignores_range: bool = False

    def source(self) -> Source:
        """The description to pin from."""
        return Source(
            name="demo", repository=REPOSITORY, file_pattern="shard_{index:05d}.parquet",
            num_files=len(self.files), licence="CC0-1.0", licence_source="https://example.org",
        )  # fmt: skip

    def manifest(self) -> Manifest:
        """The manifest that pinning should give."""
        entries = tuple(
            FileEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self.files.items()
        )
        return Manifest(
            name="demo", repository=REPOSITORY, revision=REVISION, licence="CC0-1.0",
            licence_source="https://example.org", files=entries,
        )  # fmt: skip


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Runs a hub until the block ends."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if url.path == f"/api/datasets/{REPOSITORY}/revision/main":
            self.answer(200, json.dumps({"sha": REVISION}).encode())
        elif url.path == f"/api/datasets/{REPOSITORY}/tree/{REVISION}":
            self.tree(int(parse_qs(url.query).get("cursor", ["0"])[0]))
        elif url.path.startswith(f"/datasets/{REPOSITORY}/resolve/{REVISION}/"):
            self.file(url.path.rsplit("/", 1)[1])
        else:
            self.answer(404, b"")

    def tree(self, page: int) -> None:
        name, data = list(self.hub.files.items())[page]
        item: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if not self.hub.without_lfs:
            item["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        more = {}
        if page + 1 < len(self.hub.files):
            # As mirrors do: the link names the hub itself, not the host that was asked.
            link = f"https://hub.invalid/api/datasets/{REPOSITORY}/tree/{REVISION}?cursor={page + 1}"
            more = {"Link": f'<{link}>; rel="next"'}
        self.answer(200, json.dumps([item]).encode(), more)

    def file(self, name: str) -> None:
        fault = self.hub.faults.pop(0) if self.hub.faults else ""
        if fault.isdigit():
            self.answer(int(fault), b"", {"Retry-After": "0"})
            return
        data = self.hub.files.get(name)
        if data is None:
            self.answer(404, b"")
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        partial = start > 0 and not self.hub.ignores_range
        body = data[start:] if partial else data
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if partial else {}
        if fault == "wrong":
            body = bytes(len(body))
        self.answer(206 if partial else 200, body, headers, cut=fault == "cut")

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = True
