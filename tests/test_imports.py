"""The order of imports, what an import may cost and do, and the ceilings of size, held on the sources."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("kernels", "model", "bench")

# A module imports from its own layer and from those before it.
LAYERS = (
    "kernels",
    "model",
    "bench.errors",
    "bench.spec",
    "bench.host",
    "bench.data",
    "bench.training",
    "bench.evaluation",
    "bench.proving",
    "bench.records",
    "bench.drawing",
    "bench.training_run",
    "bench.run",
    "bench.checkup",
    "bench.experiments",
    "bench.replay",
    "bench.board",
    "bench.commands",
    "bench.cli",
    "bench.__main__",
    "tests",
)
# The only modules that may import these packages.
HOMES = {"triton": "kernels.triton_ops.*", "pynvml": "bench.host.power", "submitit": "bench.experiments.jobs"}
OPTIONAL = ("triton",)  # not installed everywhere

# Checking a recipe or rebuilding the board works in a second, and where torch is not installed.
HEAVY = {"torch", "numpy", "pyarrow", "tiktoken", "triton", "matplotlib"}
LIGHT = (
    "bench.errors",
    "bench.spec*",
    "bench.commands*",
    "bench.cli",
    "bench.proving.proof",
    "bench.records.schema",
    "bench.records.events",
    "bench.records.verify",
    "bench.records.rules*",
    "bench.drawing*",
    "bench.board*",
    "bench.experiments*",
    "bench.host.machine",
    "bench.host.doctor",
    "bench.host.clock",
    "model.config",
    "model.flops",
    "model.schedule",
)
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 50
# What a process is told from outside, (module, name); only the command line asks.
OUTSIDE = {("os", name) for name in ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")} | {
    ("sys", "argv")
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One module as text."""

    module: str
    path: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def sources(*packages: str) -> dict[str, Source]:
    """Every module of these packages, by name."""
    found = {}
    for path in (path for package in packages for path in sorted((ROOT / package).rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[module] = Source(module, path, text, ast.parse(text, str(path)))
    return found


def imports(source: Source, known: dict[str, Source]) -> Iterator[tuple[ast.stmt, str]]:
    """Each import of a module, wherever in it, as (statement, dotted name of the module imported)."""
    package = source.module if source.path.stem == "__init__" else source.module.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node, submodule if submodule in known else base


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The place of a module in LAYERS; `bench` itself stands before all, for it imports nothing."""
    if module == "bench":
        return -1
    places = [place for place, name in enumerate(LAYERS) if within(module, name)]
    assert places, f"{module} has no place in LAYERS"
    return places[0]


def own(module: str) -> bool:
    return module.split(".")[0] in (*SHIPPED, "tests")


def functions(tree: ast.Module) -> Iterator[Function]:
    """Functions of the module and methods of its classes, none that is local to another."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        yield from (member for member in members if isinstance(member, Function))


def public(tree: ast.Module) -> Iterator[Function]:
    """Public functions and methods. Not Triton kernels: their pointers have no Python type."""
    for function in functions(tree):
        jit = any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)
        if not function.name.startswith("_") and not jit:
            yield function


def test_imports_point_left() -> None:
    known = sources(*SHIPPED, "tests")
    wrong = [
        f"{source.at(node)} {source.module} imports {target}"
        for source in known.values()
        for node, target in imports(source, known)
        if own(target) and layer(target) > layer(source.module)
    ]
    assert not wrong


def test_no_import_cycles() -> None:
    known = sources(*SHIPPED)
    graph = {
        name: {target for _, target in imports(source, known)} & known.keys()
        for name, source in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_relative_and_submodule_imports_are_resolved() -> None:
    known = sources(*SHIPPED)
    text = (
        "import a.b\nfrom bench import errors\nfrom . import spec\nfrom .host.x import Y\ndef f(): import c\n"
    )
    source = Source("bench.spec_like", ROOT / "bench" / "spec_like.py", text, ast.parse(text))
    targets = [target for _, target in imports(source, known)]
    assert targets == ["a.b", "bench.errors", "bench.spec", "bench.host.x", "c"]


def test_packages_with_one_home() -> None:
    known = sources(*SHIPPED)
    wrong = [
        f"{source.at(node)} imports {target}"
        for source in known.values()
        for node, target in imports(source, known)
        for package, home in HOMES.items()
        if within(target, package) and not fnmatchcase(source.module, home)
    ]
    assert not wrong


def test_only_the_command_line_reads_the_environment() -> None:
    wrong = []
    for source in sources(*SHIPPED).values():
        for node in ast.walk(source.tree):
            names: set[tuple[str | None, str]] = set()
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {(node.value.id, node.attr)}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module, alias.name) for alias in node.names}
            if names & OUTSIDE and source.module != "bench.cli":
                wrong.append(source.at(node))
    assert not wrong


def test_names_that_say_nothing_or_shadow() -> None:
    paths = [source.path for source in sources(*SHIPPED, "tests").values()]
    assert not [path for path in paths if path.stem in {"util", "utils", "helpers", "common", "misc"}]
    assert not [path for path in paths if "triton" in path.relative_to(ROOT).parts[:-1]]


def test_the_set_up_needs_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "setup_env.py").read_text(encoding="utf-8"))
    source = Source("setup_env", ROOT / "setup_env.py", "", tree)
    assert {target.split(".")[0] for _, target in imports(source, {})} <= sys.stdlib_module_names


def light_modules() -> list[str]:
    return [name for name in sources(*SHIPPED) if any(fnmatchcase(name, pattern) for pattern in LIGHT)]


@pytest.mark.parametrize("module", light_modules())
def test_light_modules_import_nothing_heavy(module: str) -> None:
    script = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", script, module]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    allowed = {"numpy"} if within(module, "bench.experiments") else set()
    assert not HEAVY & set(loaded) - allowed


# Imports what others wrote first and unwatched, then each of our modules under an audit hook.
PROBE = """
import importlib, json, os, sys, threading
foreign, ours, optional = json.loads(sys.argv[1])
CHANGES = {"subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "os.exec", "os.mkdir", "os.remove",
           "os.rename", "os.putenv", "os.unsetenv", "socket.__new__", "socket.connect", "socket.bind"}
effects, current = [], ""

def hook(event, arguments):
    if current and (event in CHANGES or event == "open" and writes(*arguments)):
        effects.append(f"{current}: {event} {arguments!r}")

def writes(path, mode, flags):
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

def load(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in optional:
            raise

for name in foreign:
    load(name)
sys.addaudithook(hook)
for name in ours:
    threads, current = threading.active_count(), name
    load(name)
    current = ""
    if threading.active_count() != threads:
        effects.append(f"{name}: starts a thread")
print(json.dumps(effects))
"""


def test_importing_a_module_does_nothing_else() -> None:
    known = sources(*SHIPPED)
    ours = sorted(name for name in known if not name.endswith("__main__"))
    foreign = {target for source in known.values() for _, target in imports(source, known) if not own(target)}
    arguments = json.dumps([sorted(foreign), ours, OPTIONAL])
    # -B: writing the compiled module is Python's own doing.
    command = [sys.executable, "-B", "-c", PROBE, arguments]
    probe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    assert json.loads(probe.stdout) == []  # a module that prints leaves more than the one line
    assert probe.stderr == ""


def test_files_and_functions_stay_small() -> None:
    known = sources(*SHIPPED, "tests")
    long_files = {
        name: num_lines
        for name, source in known.items()
        if (num_lines := len(source.text.splitlines())) > MAX_FILE_LINES
    }
    assert not long_files
    long_functions = [
        f"{source.at(node)} {node.name}"
        for source in known.values()
        for node in ast.walk(source.tree)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long_functions


def test_public_functions_say_what_they_do() -> None:
    wrong = [
        f"{source.at(node)} {node.name}"
        for source in sources(*SHIPPED).values()
        for node in public(source.tree)
        if node in source.tree.body and not ast.get_docstring(node)
    ]
    assert not wrong


def test_public_functions_are_annotated() -> None:
    wrong = []
    for source in sources(*SHIPPED).values():
        for node in public(source.tree):
            given = [each for each in ast.walk(node.args) if isinstance(each, ast.arg)]
            bare = {each.arg for each in given if each.annotation is None} - {"self", "cls"}
            if bare or node.returns is None:
                wrong.append(f"{source.at(node)} {node.name} {bare}")
    assert not wrong
