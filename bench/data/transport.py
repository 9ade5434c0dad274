"""HTTP as a flaky thing: what may be tried again, when, and what a person has to mend."""

from __future__ import annotations

import email.utils
import http.client
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from bench.errors import DataError

T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Retry:
    """How patient a download is; attempts are counted anew whenever bytes have arrived."""

    max_attempts: int = 8
    base_s: float = 1.0
    cap_s: float = 60.0
    timeout_s: float = 30.0
    max_retry_after_s: float = 900.0


DEFAULT_RETRY = Retry()


class Transient(Exception):
    """A failure worth another attempt, after `wait_s` seconds where the server asked for that."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def open_url(url: str, token: str | None, retry: Retry, first_byte: int = 0) -> http.client.HTTPResponse:
    """Opens `url` from `first_byte` on; raises Transient, or DataError where waiting cannot help."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"not a web address: {url}", "the endpoint is http(s)://..., file://... or a folder")
    request = urllib.request.Request(url, headers={"User-Agent": "speedrun-bench"})
    if token:
        # Unredirected: large files are redirected to another host, which must never see the token.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if first_byte:
        request.add_header("Range", f"bytes={first_byte}-")
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=retry.timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_error(url, error, retry) from error
    except _NETWORK_ERRORS as error:
        raise Transient(f"{url}: {getattr(error, 'reason', error) or type(error).__name__}") from error
    return response


def read_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body in chunks of up to 1 MiB; a broken connection raises Transient. Closes the response."""
    with response:
        while True:
            try:
                chunk = response.read(_CHUNK_BYTES)
            except _NETWORK_ERRORS as error:
                raise Transient(f"{response.url}: {error or type(error).__name__}") from error
            if not chunk:
                return
            yield chunk


def retrying(
    attempt: Callable[[], T],
    retry: Retry,
    stop: threading.Event,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Runs `attempt` until it succeeds, `stop` is set, or `max_attempts` in a row made no progress.

    Exponential back-off with full jitter, so that many clients do not return in step
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except Transient as error:
            if progress() > reached:
                failures, reached = 0, progress()
            failures += 1
            if failures >= retry.max_attempts or stop.is_set():
                message = f"{error} (given up after {failures} attempts)"
                raise DataError(message, "check the network and run the command again: it resumes") from error
            jitter_s = random.uniform(0, min(retry.cap_s, retry.base_s * 2 ** (failures - 1)))
            stop.wait(jitter_s if error.wait_s is None else error.wait_s + random.uniform(0, retry.base_s))


def _status_error(url: str, error: urllib.error.HTTPError, retry: Retry) -> Exception:
    reason = f"{url}: HTTP {error.code} {error.reason}"
    if error.code in (401, 403):
        return DataError(reason, "set HF_TOKEN to a token that may read this data set")
    if error.code not in _TRANSIENT_STATUS and error.code != 416:
        return DataError(reason, "check the repository, the revision and HF_ENDPOINT")
    wait_s = _retry_after_s(error.headers.get("Retry-After"))
    if wait_s is not None and wait_s > retry.max_retry_after_s:
        message = f"{reason}; the server asks to wait {wait_s:.0f} s"
        return DataError(message, "run the command again after that: it resumes")
    return Transient(reason, wait_s)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
