"""Choices and what they bind to: a reason each, the reference's signature each, chunks that fit."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import reference
from kernels.choices import CHUNK_ELEMENTS, Choice, choose, rows_per_chunk
from kernels.dispatch import Kernels, bind, full_or_blocked_attention

DEVICES = ("cuda", "mps", "cpu")
REFERENCES = {
    "embedding": reference.embedding,
    "attention": reference.sliding_window_attention,
    "relu_squared": reference.relu_squared,
    "linear_cross_entropy": reference.linear_cross_entropy,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("windowed", [False, True])
def test_every_op_has_one_choice_and_a_reason(device: str, windowed: bool) -> None:
    choices = choose(device, windowed)
    assert sorted(choice.op for choice in choices) == sorted(Kernels._fields)
    for choice in choices:
        assert choice.implementation
        assert len(choice.reason.split()) >= 3


def all_choices() -> list[tuple[Choice, ...]]:
    return [choose(device, windowed) for device in DEVICES for windowed in (False, True)]


@pytest.mark.parametrize("choices", all_choices())
def test_what_is_bound_takes_what_the_reference_takes(choices: tuple[Choice, ...]) -> None:
    kernels = bind(choices, compiled=False)
    for op, function in kernels._asdict().items():
        actual, expected = (
            inspect.signature(function).parameters,
            inspect.signature(REFERENCES[op]).parameters,
        )
        shared = [name for name in expected if name != "ignore_index"]  # -1, as the data has it
        assert list(actual)[: len(shared)] == shared
        assert all(actual[name].default == expected[name].default for name in shared)
        assert all(p.default is not p.empty for name, p in actual.items() if name not in shared)


@pytest.mark.parametrize("choices", all_choices())
@pytest.mark.parametrize("window", [3, 11, 12, 99])
def test_what_is_bound_computes_what_the_reference_computes(choices: tuple[Choice, ...], window: int) -> None:
    torch.manual_seed(0)
    kernels = bind(choices, compiled=False)
    table, tokens, targets = torch.randn(9, 4), torch.randint(0, 9, (2, 12)), torch.randint(-1, 9, (24,))
    q, (k, v) = torch.randn(2, 12, 4, 8), torch.randn(2, 2, 12, 2, 8)
    arguments = {
        "embedding": (table, tokens, torch.float32),
        "attention": (q, k, v, window),
        "relu_squared": (q,),
        "linear_cross_entropy": (torch.randn(24, 4), table, targets, 15.0, "sum"),
    }
    for op, function in kernels._asdict().items():
        torch.testing.assert_close(function(*arguments[op]), REFERENCES[op](*arguments[op]))


def test_a_choice_is_kept() -> None:
    bound = {
        name: bind((Choice("attention", name, "a test"),), compiled=False).attention
        for name in ("sdpa", "blocked")
    }
    assert bound["sdpa"] is full_or_blocked_attention
    assert bound["blocked"] is not full_or_blocked_attention
    for compiled in (False, True):
        loss = bind(choose("cpu", True), compiled=compiled).linear_cross_entropy
        assert isinstance(loss, partial)
        assert loss.keywords == {"compiled": compiled}


@given(vocab=st.integers(1, 2**19))
def test_a_chunk_fits_its_budget_and_is_no_smaller_than_it_needs(vocab: int) -> None:
    chunk = rows_per_chunk(vocab)
    assert chunk >= 128
    assert chunk & (chunk - 1) == 0
    assert chunk == 128 or chunk * vocab <= CHUNK_ELEMENTS
    assert 2 * chunk * vocab > CHUNK_ELEMENTS
