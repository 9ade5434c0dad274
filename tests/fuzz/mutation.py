"""What becomes of a recipe or a record in a stranger's hands; one seed, one result."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63), 10**25, 0.0, -0.0, 1e-320, 1e308, -1e308, 0.5, 1.0000001)
TEXTS = ("", "\x1b[2J", "../../etc/passwd", "a\nb", "\u202egro", "<script>", "ü" * 300, "0" * 64, "NaN", "|")
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [1, "x", None], {"a": [{}]})
TOML_VALUES = (
    *("nan", "-inf", "1e400", "true", '""', "[]", "{}", "{a = 1}", "1979-05-27", "0x7fffffffffffffff", "-1"),
    *(
        "9" * 400,
        "1.7e308",
        "9223372036854775807",
        '"\\u001b[2J"',
        '"../../etc/passwd"',
        "'''a\nb'''",
        "=",
        "\\",
    ),
    *("0", "1", "2", "3", "7", "128", "1024", "65536", "0.5", "1e-9", '"auto"', '"run6"', '"none"', '"L"'),
)


def mutated_bytes(source: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut, doubled or put in, at a few places."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 4))):
        start = source.randrange(len(data) + 1)
        end = min(start + source.choice((0, 1, 1, 4, 40)), len(data))
        data[start:end] = source.choice(
            (b"", source.randbytes(source.randint(1, 3)), bytes(data[start:end]) * 2)
        )
    return bytes(data)


def mutated_toml(source: random.Random, content: bytes, fields: list[str]) -> bytes:
    """A recipe with a few fields set to anything, some at the top, some as tables of their own."""
    lines = content.decode().splitlines()
    for _ in range(source.choice((1, 1, 2, 4))):
        table, _, field = source.choice(fields).rpartition(".")
        value = source.choice(TOML_VALUES)
        if table and source.random() < 0.8 and f"[{table}]" not in lines:
            lines += [f"[{table}]", f"{field} = {value}"]
        elif f"[{table}]" in lines and source.random() < 0.8:
            lines.insert(lines.index(f"[{table}]") + 1, f"{field} = {value}")
        else:
            lines.insert(source.randrange(len(lines) + 1), f"{field} = {value}")
    return "\n".join(lines).encode()


def mutated_json(source: random.Random, content: bytes) -> bytes:
    """JSON with a few of its values replaced, removed or given to another key."""
    tree = json.loads(content)
    for _ in range(source.randint(1, 3)):
        _replace(source, tree)
    return json.dumps(tree).encode(errors="surrogatepass")


def _replace(source: random.Random, tree: Any) -> None:
    """Walks down at random and changes what it ends at."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return
        key = source.choice(keys)
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or source.random() < 0.1:
            break
        node = inner
    act = source.random()
    if act < 0.05:
        del node[key]
    elif act < 0.1 and isinstance(node, dict):
        node[source.choice(TEXTS)] = node[key]
    elif act < 0.2:
        node[key] = source.choice((*NUMBERS, *TEXTS, *OTHERS))
    else:
        node[key] = _like(source, inner)


def _like(source: random.Random, value: Any) -> Any:
    """Another value of the same type, so that what reads it goes on to judge it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return source.choice(
            (*(one for one in NUMBERS if isinstance(one, int)), value + 1, value * 2, value // 2)
        )
    if isinstance(value, float):
        return source.choice((*NUMBERS, value * 2, value / 2, -value))
    if isinstance(value, str):
        return source.choice((*TEXTS, value * 2, value[:-1], value.upper()))
    if isinstance(value, list):
        return source.choice((value * 2, value[:-1], value[::-1], []))
    return {} if value else source.choice((None, 0, 0.5, ""))
