"""Text from anywhere that is shown as text: one line, printed characters, no markup."""

from __future__ import annotations

import html
import unicodedata

# Not Cn: what is unassigned differs by Python's version.
UNPRINTED = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs")


def plain(text: str) -> str:
    """Text of one line, without characters that are not printed or that turn what follows around."""
    shown = "".join(" " if unicodedata.category(character) in UNPRINTED else character for character in text)
    return " ".join(shown.split())


def text(value: str) -> str:
    """Text from anywhere as HTML or SVG text, or as an attribute's value: nothing in it is markup."""
    return html.escape(plain(value))
