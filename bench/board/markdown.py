"""Markdown that text from strangers cannot break out of. Imports no torch."""

from __future__ import annotations

import re
import unicodedata

# Characters that begin or end markup in GitHub's Markdown, `$` of its formulas among them.
MARKUP = frozenset("\\|*_`[]#~!$")
UNPRINTED = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
    "Zs",
)  # not Cn: what is unassigned differs by Python's version
BREAK = "&#8203;"  # a zero-width space


def escape(text: str) -> str:
    """Text as plain Markdown text of one line: no markup, no table break, no link, no mention."""
    plain = "".join(" " if unicodedata.category(character) in UNPRINTED else character for character in text)
    plain = " ".join(plain.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = "".join(f"\\{character}" if character in MARKUP else character for character in plain)
    # GitHub makes links of bare http(s)://, ftp://, www., mailto:, xmpp: and a@b.c (GFM 0.29, 6.9).
    plain = re.sub(r"(?i)(https?|ftp|mailto|xmpp):", rf"\1{BREAK}:", plain)
    return re.sub(r"(?i)(www)\.", rf"\1{BREAK}.", plain).replace("@", f"@{BREAK}")


def table(columns: list[tuple[str, str]], rows: list[list[str]]) -> str:
    """A GitHub table, padded so that it reads as text too.

    Args:
        columns: (header, "left" or "right").
        rows: escaped cells.
    """
    widths = [
        max(len(cell) for cell in cells) for cells in zip([name for name, _ in columns], *rows, strict=True)
    ]
    aligned = list(zip(columns, widths, strict=True))
    rule = "|".join(f"{'-' * (width + 1)}{':' if align == 'right' else '-'}" for (_, align), width in aligned)
    lines = [
        _line([name for name, _ in columns], aligned),
        f"|{rule}|",
        *(_line(row, aligned) for row in rows),
    ]
    return "\n".join(lines)


def _line(cells: list[str], aligned: list[tuple[tuple[str, str], int]]) -> str:
    padded = [
        cell.rjust(width) if align == "right" else cell.ljust(width)
        for cell, ((_, align), width) in zip(cells, aligned, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
