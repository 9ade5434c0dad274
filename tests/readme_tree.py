"""What READMEs list, from the files listed: `python -m tests.readme_tree` writes modules and recipes anew."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bench.board.markdown import escape, table
from bench.spec.submission import load
from bench.spec.toml import read_toml

ROOT = Path(__file__).resolve().parent.parent
# Folder, what it is; in the order of the flow. The properties of ops are one file an op, as the folder says.
FOLDERS = (
    ("kernels", "the ops: one eager reference, several implementations an op"),
    ("kernels/triton_ops", "the Triton implementations, one file an op; the only home of triton"),
    ("model", "what is trained"),
    ("model/optimizers", "how it is trained"),
    ("bench", "the harness"),
    ("bench/commands", "what the command line does"),
    ("bench/spec", "what is asked; imports no torch"),
    ("bench/host", "where it runs, and how it is measured"),
    ("bench/data", "text to batches"),
    ("bench/training", "batches to weights"),
    ("bench/evaluation", "weights to bits per byte"),
    ("bench/evaluation/core", "CORE: 22 tasks, item for item nanochat's answers"),
    ("bench/proving", "the proof gate"),
    ("bench/proving/properties", "what every implementation of an op has to meet, one file an op"),
    ("bench/records", "what is kept, and the rules it is held to"),
    ("bench/checkup", "this machine looked at: what it lacks, whether it computes rightly, how fast it is"),
    ("bench/drawing", "what every plot is made of, as SVG text"),
    ("bench/experiments", "what records tell: comparisons, gates, sweeps, shapes; imports no torch"),
    ("bench/experiments/horizon", "how long to train, inferred from the text; imports no torch"),
    ("bench/board", "records to LEADERBOARD.md, index.html, feed.json, board.svg"),
)
ONE_BY_ONE = "bench/proving/properties"
START, END = "<!-- modules -->\n```\n", "```\n<!-- end of modules -->\n"


def phrase(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()))[0].removesuffix(".")


def tree() -> str:
    """One line a folder, one a module."""
    lines = []
    for folder, says in FOLDERS:
        lines.append(f"{folder + '/':<26} {says}")
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name != "__init__.py" and folder != ONE_BY_ONE:
                lines.append(f"  {path.name:<30} {phrase(path)}")
    return "\n".join(lines) + "\n"


def with_tree(readme: str) -> str:
    """The README with the list of modules as it should be."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + tree() + END + after


RECIPES_HEAD = """# Recipes

A recipe stands on its base and says what is otherwise: `make diff A= B=` shows the difference,
`make plan SUB=` what it would do. [sweeps/](sweeps/) holds experiments that make recipes.
[CONTRIBUTING.md](../CONTRIBUTING.md) says how to add one.

"""


def recipes() -> str:
    """submissions/README.md: a line a recipe."""
    lines = []
    for path in sorted((ROOT / "submissions").glob("*.toml")):
        recipe, base = load(path, path.parent).recipe, read_toml(path).get("base", "")
        title = recipe.title.removeprefix(f"{path.stem}: ")
        lines.append([f"[{path.stem}]({path.name})", escape(title), str(base), recipe.track])
    columns = [(name, "left") for name in ("recipe", "what it is", "stands on", "its own track")]
    return f"{RECIPES_HEAD}{table(columns, lines)}\n"


if __name__ == "__main__":
    (ROOT / "submissions" / "README.md").write_text(recipes(), "utf-8")
    (ROOT / "README.md").write_text(with_tree((ROOT / "README.md").read_text(encoding="utf-8")), "utf-8")
