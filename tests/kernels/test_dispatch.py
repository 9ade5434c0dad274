"""Choices and what they bind to: a reason each, the reference's signature each, chunks that fit."""

from __future__ import annotations

import inspect
from functools import partial
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spec.recipe import Kernels as KernelTable
from kernels import reference
from kernels.choices import (
    ALWAYS,
    CHUNK_ELEMENTS,
    IMPLEMENTATIONS,
    LEAST_CHUNK_ROWS,
    REFERENCE,
    Choice,
    choose,
    rows_per_chunk,
)
from kernels.dispatch import Kernels, bind, implementation

DEVICES = ("cuda", "mps", "cpu")
EVERY = [(op, name) for op, names in IMPLEMENTATIONS.items() for name in names]


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_has_one_choice_and_a_reason(device: str) -> None:
    choices = choose(device, ops=IMPLEMENTATIONS)
    assert sorted(choice.op for choice in choices) == sorted(Kernels._fields)
    assert [choice for choice in choices if choice.op in ALWAYS] == list(choose(device))
    for choice in choices:
        assert choice.implementation in IMPLEMENTATIONS[choice.op]
        assert len(choice.reason.split()) >= 3


def test_the_recipe_may_name_every_implementation_of_every_op() -> None:
    hints = get_type_hints(KernelTable)
    assert sorted(hints) == sorted(IMPLEMENTATIONS)
    for op, hint in hints.items():
        assert get_args(hint) == ("auto", *IMPLEMENTATIONS[op])


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_what_the_recipe_names_is_chosen(op: str) -> None:
    for name in IMPLEMENTATIONS[op]:
        chosen = {choice.op: choice.implementation for choice in choose("cuda", {op: name}, IMPLEMENTATIONS)}
        others = {
            choice.op: choice.implementation for choice in choose("cuda", {op: "auto"}, IMPLEMENTATIONS)
        }
        assert chosen == others | {op: name}


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_an_implementation_takes_what_its_reference_takes(op: str, name: str) -> None:
    actual = inspect.signature(implementation(op, name)).parameters
    expected = inspect.signature(implementation(op, REFERENCE)).parameters
    assert list(actual)[: len(expected)] == list(expected)
    for parameter, wanted in expected.items():
        assert (actual[parameter].default, actual[parameter].kind) == (wanted.default, wanted.kind)
    assert all(
        actual[extra].default is not inspect.Parameter.empty for extra in list(actual)[len(expected) :]
    )


def test_nothing_chosen_is_the_reference() -> None:
    assert bind((), compiled=False).linear_cross_entropy is reference.linear_cross_entropy


@pytest.mark.parametrize("compiled", [False, True])
def test_a_choice_is_kept(compiled: bool) -> None:
    kernels = bind(
        (Choice("linear_cross_entropy", "chunked", "a test"), Choice("muon_update", "in-place", "a test")),
        compiled=compiled,
    )
    assert kernels.attention is reference.sliding_window_attention
    for function in (kernels.linear_cross_entropy, kernels.muon_update):
        assert isinstance(function, partial)
        assert function.keywords == {"compiled": compiled}


@given(vocab=st.integers(1, 2**19))
def test_a_chunk_fits_its_budget_and_is_no_smaller_than_it_needs(vocab: int) -> None:
    chunk = rows_per_chunk(vocab)
    assert chunk >= LEAST_CHUNK_ROWS
    assert chunk & (chunk - 1) == 0
    assert chunk == LEAST_CHUNK_ROWS or chunk * vocab <= CHUNK_ELEMENTS
    assert 2 * chunk * vocab > CHUNK_ELEMENTS
