"""What the tables of recipes and tracks are made of: kinds of numbers and of text, and the tables' base."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e6)]
Strength = Annotated[float, Meta(ge=-1e6, le=1e6)]
Beta = Annotated[float, Meta(ge=0.0, lt=1.0)]
Count = Annotated[int, Meta(ge=1, le=10**15)]
# \Z and not $, which lets a newline follow.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
# Free text is printed to terminals and written to the board: no control characters, nothing that turns the
# direction of what follows (U+202A to U+202E, U+2066 to U+2069; Unicode TR 36, bidirectional text spoofing).
UNPRINTED = "\\u202a-\\u202e\\u2066-\\u2069\\x7f-\\x9f"
Line = Annotated[str, Meta(max_length=120, pattern=f"^[^\\x00-\\x1f{UNPRINTED}]*\\Z")]
Text = Annotated[str, Meta(max_length=4000, pattern=f"^[^\\x00-\\x08\\x0b-\\x1f{UNPRINTED}]*\\Z")]
Link = Annotated[str, Meta(pattern=r"^https://[^\s<>\"'`|]{1,200}\Z")]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table: immutable, keywords only, unknown fields refused."""
