"""The corpus that every machine has: the text of the running Python's own standard library."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

DOCUMENT_CHARS = 2000
_VALIDATION_ONE_IN = 25
_SKIPPED_FOLDERS = frozenset({
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test",
    "idlelib", "lib2to3", "ensurepip", "turtledemo", "lib-dynload",
})  # fmt: skip
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
# Tables written by a program (codecs, pydoc topics, token numbers) say so in their first lines.
_GENERATED = re.compile(rb"generated (?:from|by)|auto-?generated|automatically generated", re.IGNORECASE)
_GENERATED_WITHIN_BYTES = 400
# Where a file may be cut, best first: before a statement at column 0 that follows an empty line,
# after any empty line, after any line.
_CUTS = (re.compile(r"(?<=\n\n)(?=[^\s)\]}#])"), re.compile(r"(?<=\n\n)"), re.compile(r"(?<=\n)"))


def stdlib_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def candidate_files(root: Path) -> tuple[str, ...]:
    """Relative paths of the .py files below `root`, sorted, without tests and platform-dependent ones."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_kept(name)]
        base = Path(folder).relative_to(root)
        found.extend((base / name).as_posix() for name in names if name.endswith(".py") and _is_kept(name))
    return tuple(sorted(found))


def is_generated(data: bytes) -> bool:
    """Whether a source file says that a program wrote it."""
    return _GENERATED.search(data[:_GENERATED_WITHIN_BYTES]) is not None


def is_validation(relative_path: str) -> bool:
    """About 4 % of the files, chosen by their path alone, so that a new Python moves few of them."""
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _VALIDATION_ONE_IN == 0


def decode_source(data: bytes) -> str:
    """A source file's text in the encoding that it declares (PEP 263), with newlines as they are."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def cut(text: str) -> Iterator[str]:
    """Documents of at most about 2,000 characters whose concatenation is `text`; a long line stays whole."""
    return _cut(text, 0)


def _cut(text: str, level: int) -> Iterator[str]:
    if len(text) <= DOCUMENT_CHARS or level == len(_CUTS):
        if text:
            yield text
        return
    group = ""
    for piece in _CUTS[level].split(text):
        if group and len(group) + len(piece) > DOCUMENT_CHARS:
            yield from _cut(group, level + 1)
            group = ""
        group += piece
    yield from _cut(group, level + 1)


def _is_kept(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_PREFIXES)
