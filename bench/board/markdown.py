"""Markdown that text from strangers cannot break out of. Imports no torch."""

from __future__ import annotations

import re

from tabulate import tabulate

from bench.drawing.words import plain

# Characters that begin or end markup in GitHub's Markdown, `$` of its formulas among them.
MARKUP = frozenset("\\|*_`[]#~!$")
BREAK = "&#8203;"  # a zero-width space


def escape(text: str) -> str:
    """Text as plain Markdown text of one line: no markup, no table break, no link, no mention."""
    shown = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = "".join(f"\\{character}" if character in MARKUP else character for character in shown)
    # GitHub makes links of bare http(s)://, ftp://, www., mailto:, xmpp: and a@b.c (GFM 0.29, 6.9).
    shown = re.sub(r"(?i)(https?|ftp|mailto|xmpp):", rf"\1{BREAK}:", shown)
    return re.sub(r"(?i)(www)\.", rf"\1{BREAK}.", shown).replace("@", f"@{BREAK}")


def table(columns: list[tuple[str, str]], rows: list[list[str]]) -> str:
    """A GitHub table, padded so that it reads as text too.

    Args:
        columns: (header, "left" or "right").
        rows: escaped cells.
    """
    return tabulate(
        rows,
        headers=[name for name, _ in columns],
        tablefmt="pipe",
        colalign=[align for _, align in columns] if rows else None,
        disable_numparse=True,
        preserve_whitespace=True,
    )
