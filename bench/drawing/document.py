"""An SVG file that stands alone: what the board's page brings, it brings itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.drawing.marks import CHARACTER_PX
from bench.drawing.words import text

# Okabe and Ito's colours, told apart by the colour-blind as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#4a525a}.title{font-size:15px;font-weight:600;fill:#1d2126}"
    ".mid{text-anchor:middle}.end{text-anchor:end}.name{font-weight:600}path,polyline{fill:none}"
    ".grid{stroke:#e3e5e4}.axis,.tick{stroke:#5f6872}.err{stroke:#5f6872;stroke-width:1.4}"
    ".dot{stroke:#fff}.line{stroke-width:1.6;stroke-linejoin:round}"
)
TITLE_PX, KEY_PX = 36, 18  # height of the title, and of a row of the key
MARGIN = 8  # left of what a frame writes at its edge


class Key(NamedTuple):
    """One entry of a plot's key."""

    name: str
    colour: str
    is_dot: bool = False


def key_rows(keys: Sequence[Key], width: float, left: float) -> tuple[list[str], float]:
    """The key as marks below the title, in as many rows as it needs, and where it ends."""
    parts, x, y = [], left, TITLE_PX + 4.0
    for name, colour, is_dot in keys:
        needed = 24 + CHARACTER_PX * len(name) + 18
        if x > left and x + needed > width:
            x, y = left, y + KEY_PX
        mark = f'<circle class="dot" cx="{x + 8:g}" cy="{y:g}" r="4" fill="{colour}"/>'
        line = f'<path class="line" stroke="{colour}" d="M{x:g} {y:g}h16"/>'
        parts += [mark if is_dot else line, f'<text x="{x + 22:g}" y="{y + 4:g}">{text(name)}</text>']
        x += needed
    return parts, y + (KEY_PX - 4 if keys else -KEY_PX + 4)


def document(title: str, body: Sequence[str], width: float, height: float, left: float) -> str:
    """The file: the title shown and told, a white ground, the body."""
    view = f'viewBox="{-MARGIN} 0 {width + MARGIN:g} {height:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img">',
            f"<title>{text(title)}</title><style>{STYLE}</style>",
            f'<rect x="{-MARGIN}" width="{width + MARGIN:g}" height="{height:g}" fill="#ffffff"/>',
            f'<text class="title" x="{left:g}" y="24">{text(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )
