"""Inductor's C++ kernels of one graph, compiled together instead of one by one.

torch 2.13 gives each kernel a translation unit and a library of its own, where g++ 12 spends 0.9 of 1.0 s on
what every unit has: an empty one takes 0.6 s with Inductor's precompiled header, linking it 0.25 (AVX2). The
trunk of d4 has some 40 kernels. Here those of a graph go into one unit for each compiler thread, every kernel
in a namespace with the bindings that Inductor writes for it: the same code, by the same flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

READ_IN = "2.13."  # the version whose Inductor this stands on; another compiles as it does by itself
HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
OF_BINDINGS = "".join(f"#include <{name}>\n" for name in ("Python.h", "sstream", "cstdlib", "cerrno"))
DECLARATION = re.compile(r'extern "C"\s+void\s+kernel\(')


@cache
def batch_cpp_kernels() -> None:
    """From now on Inductor compiles the kernels of a graph together, for the whole process."""
    if not torch.__version__.startswith(READ_IN):
        return
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    from torch._inductor.codecache import LambdaFuture

    theirs = AsyncCompile.cpp_pybinding

    def cpp_pybinding(self: Any, argtypes: list[str], source_code: str) -> Any:
        kernel = Kernel(tuple(argtypes), source_code)
        if get_compile_threads() <= 1 or not kernel.is_plain():
            return theirs(self, argtypes, source_code)
        batch = vars(self).setdefault("batch", Batch(self.submit, get_compile_threads()))
        batch.kernels.append(kernel)
        return LambdaFuture(lambda: batch.function(kernel))  # called when the graph's last has been added

    AsyncCompile.cpp_pybinding = cpp_pybinding  # type: ignore[method-assign]


class Kernel(NamedTuple):
    """A kernel as Inductor asks for it."""

    argtypes: tuple[str, ...]
    source: str

    def is_plain(self) -> bool:
        """Whether it is one function and needs no header of its own."""
        headers, functions = self.source.count("#include"), len(DECLARATION.findall(self.source))
        return HEADER in self.source and headers == functions == 1

    def in_namespace(self, name: str, bindings: str) -> str:
        """The kernel and its bindings, both called `name`."""
        types = [each.replace("const ", "") for each in self.argtypes]
        arguments = [f"parse_arg<{each}>(args, {i})" for i, each in enumerate(types)]
        bound = bindings.format(
            arg_len=len(arguments),
            call_entry_func=f"{name}({', '.join(arguments)}); Py_RETURN_NONE;",
            entry_func=name,
            extra_parse_arg="",
        )
        source = DECLARATION.sub(f"static void {name}(", self.source.replace(HEADER, ""))
        return f"namespace of_{name} {{\n{source}\n{bound}\n}}\n"


def dealt(kernels: Sequence[Kernel], num_units: int) -> list[list[Kernel]]:
    """The kernels in at most so many units of about the same length, the longest first."""
    units: list[list[Kernel]] = [[] for _ in range(min(num_units, len(kernels)))]
    for kernel in sorted(kernels, key=lambda each: len(each.source), reverse=True):
        min(units, key=lambda unit: sum(len(each.source) for each in unit)).append(kernel)
    return units


class Batch:
    """The kernels of one generated module; all are compiled when the first is asked for."""

    def __init__(self, submit: Callable[..., Any], num_units: int) -> None:
        self.submit, self.num_units = submit, num_units
        self.kernels: list[Kernel] = []
        self.functions: dict[Kernel, Callable[..., None]] = {}

    def function(self, kernel: Kernel) -> Callable[..., None]:
        """The compiled kernel."""
        if kernel not in self.functions:
            units = dealt(list(dict.fromkeys(self.kernels)), self.num_units)
            started = [_library().load_async(source_of(unit), submit_fn=self.submit) for unit in units]
            for unit, loads in zip(units, started, strict=True):
                library = loads()
                self.functions |= {each: _function(library, f"kernel_{i}") for i, each in enumerate(unit)}
        return self.functions[kernel]


def source_of(unit: Sequence[Kernel]) -> str:
    """One translation unit."""
    bindings = _library().suffix_template
    parts = [kernel.in_namespace(f"kernel_{i}", bindings) for i, kernel in enumerate(unit)]
    return "".join((HEADER, OF_BINDINGS, *parts))


@cache
def _library() -> Any:
    """Inductor's cache of bound kernels, but that a library is not loaded as the module of one kernel."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    class Library(CppPythonBindingsCodeCache):
        @classmethod
        def _load_library_inner(cls, path: str, key: str) -> Any:
            return SimpleNamespace(path=path)

    Library.cache = {}  # of its own: in theirs are modules
    return Library


def _function(library: Any, name: str) -> Callable[..., None]:
    """One of a library's kernels, from the extension module that its bindings make."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    named: Any = type(name, (CppPythonBindingsCodeCache,), {"entry_function": name})
    function: Callable[..., None] = getattr(named._load_library_inner(library.path, library.key), name)
    return function
