"""Mutants of Triton kernels: the module's own source with one passage replaced."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import library

from kernels.dispatch import implementation


class NotAMutantError(BaseException):
    """The mutant itself is at fault; no Exception, for those count as the kernel's and kill it."""


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
    source = inspect.getsource(import_module(name))  # loads what the mutant imports, too
    if source.count(right) != 1:
        raise NotAMutantError(f"{name} holds {source.count(right)} times {right!r}")
    # torch knows an op by its name: a mutant's must not replace the ones it was made from.
    namespace = f"mutant{abs(hash((right, wrong)))}"
    source = source.replace(right, wrong).replace("speedrun::", f"{namespace}::")
    module = ModuleType(namespace)
    module.__file__ = f"<{namespace}>"
    # Where triton.jit looks for the kernel's text.
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(True), module.__file__)
    try:
        with patch.object(library, "custom_op", _custom_op_of(namespace)):
            exec(compile(source, module.__file__, "exec"), module.__dict__)
    except Exception as error:
        raise NotAMutantError(f"{name} with {wrong!r} does not load: {error}") from error
    return module


def _custom_op_of(namespace: str) -> Callable[..., Any]:
    """`custom_op` for the names of this namespace alone."""
    custom_op = library.custom_op

    def of_the_mutant(name: str, *arguments: Any, **options: Any) -> Any:
        if not name.startswith(f"{namespace}::"):
            raise NotAMutantError(f"it would replace {name} for the whole process")
        return custom_op(name, *arguments, **options)

    return of_the_mutant
