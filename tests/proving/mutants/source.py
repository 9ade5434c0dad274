"""Mutants of Triton kernels: the module's own source with one passage replaced."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kernels.dispatch import implementation


def mutated(op: str, right: str, wrong: str) -> Callable[..., Any]:
    """The op's Triton implementation with `right`, found once in its source, replaced by `wrong`.

    Made when it is first called, for triton is not installed everywhere. float64, which no kernel takes, goes
    to the reference: there the mutant has no flaw.
    """

    def function(first: Any, *arguments: Any, **options: Any) -> Any:
        if first.dtype == torch.float64:
            return implementation(op, "reference")(first, *arguments, **options)
        return getattr(_module(op, right, wrong), op)(first, *arguments, **options)

    return function


@cache
def _module(op: str, right: str, wrong: str) -> ModuleType:
    name = f"kernels.triton_ops.{op}"
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{name} holds {source.count(right)} times {right!r}"
    # torch knows an op by its name: a mutant's must not replace the ones it was made from.
    assert "speedrun::" in source, f"{name} registers its ops under a namespace that is not seen here"
    namespace = f"mutant{abs(hash((right, wrong)))}"
    source = source.replace(right, wrong).replace("speedrun::", f"{namespace}::")
    module = ModuleType(namespace)
    module.__file__ = f"<{namespace}>"
    # Where triton.jit looks for the kernel's text.
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module
