"""Mutants of Triton kernels: the module's own source with one passage replaced."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

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
    namespace = f"mutant{abs(hash((right, wrong)))}"
    source = source.replace(right, wrong).replace("speedrun::", f"{namespace}::")
    module = ModuleType(namespace)
    module.__file__ = f"<{namespace}>"
    # Where triton.jit looks for the kernel's text.
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    with patch.object(torch.library, "custom_op", _custom_op_of(namespace)):
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def _custom_op_of(namespace: str) -> Callable[..., Any]:
    """`torch.library.custom_op` for the names of this namespace alone."""
    custom_op = torch.library.custom_op

    def of_the_mutant(name: str, *arguments: Any, **options: Any) -> Any:
        assert name.startswith(f"{namespace}::"), f"a mutant would replace {name} for the whole process"
        return custom_op(name, *arguments, **options)

    return of_the_mutant
