"""Chunked linear cross-entropy: values and gradients against float64, whatever the shape and chunk."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.linear_cross_entropy import _gradients_op, _losses_op, linear_cross_entropy
from tests.kernels.bounds import assert_close_as_eager, largest

SOFTCAPS = (0.0, 15.0, 60.0)
REDUCTIONS = ("mean", "sum", "none")


def problem(
    seed: int, rows: int, width: int, vocab: int, *, dtype: torch.dtype = torch.float64, spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, a quarter of them ignored; logits have about `spread` as deviation."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64) * spread / math.sqrt(width)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.25] = -1
    master = torch.float64 if dtype == torch.float64 else torch.float32
    return hidden.to(dtype), weight.to(dtype).to(master), targets


def chunks_of(rows: int) -> pytest.MonkeyPatch:
    """From here on chunks hold this many rows; undo the patch that is returned."""
    patch = pytest.MonkeyPatch()
    patch.setattr("kernels.linear_cross_entropy.rows_per_chunk", lambda vocab_size: rows)
    return patch


def gradients(function, hidden: Tensor, weight: Tensor, *arguments: object, upstream: Tensor | None = None):  # type: ignore[no-untyped-def]
    """(loss, gradient of hidden, gradient of weight)."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = function(hidden, weight, *arguments)
    return loss.detach(), *torch.autograd.grad(
        loss, (hidden, weight), torch.ones_like(loss) if upstream is None else upstream
    )


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    width=st.integers(1, 20),
    vocab=st.integers(1, 70),
    chunk=st.sampled_from([1, 3, 16, 40]),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    softcap=st.sampled_from(SOFTCAPS),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_loss_and_gradients_are_as_close_to_float64_as_eager(
    seed: int,
    rows: int,
    width: int,
    vocab: int,
    chunk: int,
    spread: float,
    softcap: float,
    reduction: str,
    dtype: torch.dtype,
) -> None:
    hidden, weight, targets = problem(seed, rows, width, vocab, dtype=dtype, spread=spread)
    arguments = (targets, softcap, reduction)
    patch = chunks_of(chunk)
    actual = gradients(linear_cross_entropy, hidden, weight, *arguments)
    patch.undo()
    eager = gradients(reference.linear_cross_entropy, hidden, weight, *arguments)
    oracle = gradients(reference.linear_cross_entropy, hidden.double(), weight.double(), *arguments)
    # A logit's rounding (of a capped one, at the size of the cap) is an error of the loss and of log p: the
    # floor grows with it; of gradients not in bf16, where eager rounds the same. A row's gradient is at most
    # its weight. With one column eager's loss is exactly 0 and only the floor is left.
    size = 1.0 + softcap + largest(hidden.double() @ weight.double().T)
    logit = 1.0 if dtype == torch.bfloat16 else size
    weight_of_row = 1.0 / max(1, int((targets >= 0).sum())) if reduction == "mean" else 1.0
    counted = rows if reduction == "sum" else 1
    assert_close_as_eager(actual[0], eager[0], oracle[0], factor=3, ulps=4, scale=size * counted)
    scale = logit * weight_of_row * largest(weight)
    assert_close_as_eager(
        actual[1], eager[1], oracle[1], factor=3, ulps=1 if dtype == torch.bfloat16 else 8, scale=scale
    )
    # The head's gradient is float32, of products that are rounded to the compute dtype.
    ulps = torch.finfo(dtype).eps / torch.finfo(actual[2].dtype).eps
    scale = logit * weight_of_row * largest(hidden)
    assert_close_as_eager(actual[2], eager[2], oracle[2], factor=3, ulps=4 * ulps, scale=scale)


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_the_derivatives(softcap: float, reduction: str) -> None:
    hidden, weight, targets = problem(1, 5, 3, 4, spread=8.0)
    patch = chunks_of(2)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, softcap, reduction)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))
    patch.undo()


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_extreme_logits_stay_finite_and_right(softcap: float, dtype: torch.dtype, sign: float) -> None:
    """Logits of 1e4, also with a whole row at the bottom of the cap, where e^z of every token is smallest."""
    hidden = (torch.tensor([[1e4], [-1e4], [64.0], [1e30], [0.0]]) * sign).to(dtype)
    weight = torch.tensor([[1.0], [0.96875], [1.0], [-1.0]]).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    for rows in (weight, weight[:3]):
        for target in range(rows.shape[0]):
            targets = torch.full((5,), target)
            actual = gradients(linear_cross_entropy, hidden, rows, targets, softcap, "none")
            oracle = gradients(
                reference.linear_cross_entropy, hidden.double(), rows.double(), targets, softcap, "none"
            )
            for x, y in zip(actual, oracle, strict=True):
                error = (x.double() - y).abs() / (1.0 + y.abs())
                # A capped logit is rounded at the size of the cap.
                assert largest(error) <= 8 * (1.0 + 4.0 * softcap) * torch.finfo(dtype).eps


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 30),
    softcap=st.sampled_from(SOFTCAPS),
    chunk=st.integers(1, 33),
)
def test_the_chunk_size_changes_nothing(seed: int, rows: int, softcap: float, chunk: int) -> None:
    hidden, weight, targets = problem(seed, rows, 6, 11)
    whole = gradients(linear_cross_entropy, hidden, weight, targets, softcap)
    patch = chunks_of(chunk)
    chunked = gradients(linear_cross_entropy, hidden, weight, targets, softcap)
    patch.undo()
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-14)


def test_a_vocabulary_that_needs_several_chunks() -> None:
    hidden, weight, targets = problem(0, 300, 4, 2**14 + 3)
    actual = gradients(linear_cross_entropy, hidden, weight, targets, 15.0)
    oracle = gradients(reference.linear_cross_entropy, hidden, weight, targets, 15.0)
    torch.testing.assert_close(actual, oracle, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_all_ignored_cost_nothing(reduction: str, softcap: float, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(0, 6, 4, 9, dtype=dtype, spread=50.0)
    for result in gradients(
        linear_cross_entropy, hidden, weight, torch.full_like(targets, -1), softcap, reduction
    ):
        assert torch.equal(result, torch.zeros_like(result))


def test_ignored_rows_get_no_gradient_and_change_no_other_row() -> None:
    hidden, weight, targets = problem(3, 20, 5, 9, dtype=torch.float32)
    ignored = targets < 0
    assert ignored.any()
    _, before, _ = gradients(linear_cross_entropy, hidden, weight, targets, 15.0)
    other = torch.where(ignored[:, None], hidden + 7.0, hidden)
    _, after, _ = gradients(linear_cross_entropy, other, weight, targets, 15.0)
    assert not before[ignored].any()
    assert torch.equal(before, after)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(reduction: str) -> None:
    hidden, weight, targets = problem(0, 0, 4, 9, dtype=torch.float32)
    loss, grad_hidden, grad_weight = gradients(linear_cross_entropy, hidden, weight, targets, 15.0, reduction)
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert grad_hidden.shape == (0, 4)
    assert not loss.any()
    assert not grad_weight.any()


@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_one_column_has_nothing_to_choose(softcap: float) -> None:
    hidden, weight, targets = problem(0, 6, 4, 1)
    for result in gradients(linear_cross_entropy, hidden, weight, targets.clamp_min(0), softcap):
        assert largest(result) < 1e-14


@given(seed=st.integers(0, 10**6), softcap=st.sampled_from(SOFTCAPS), reduction=st.sampled_from(REDUCTIONS))
def test_gradients_are_linear_in_the_upstream_gradient(seed: int, softcap: float, reduction: str) -> None:
    hidden, weight, targets = problem(seed, 8, 4, 6)
    generator = torch.Generator().manual_seed(seed)
    shape = (8,) if reduction == "none" else ()
    u, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64).unbind(0)
    results = [
        gradients(linear_cross_entropy, hidden, weight, targets, softcap, reduction, upstream=upstream)[1:]
        for upstream in (u, v, 3.0 * u - v)
    ]
    for of_u, of_v, of_both in zip(*results, strict=True):
        torch.testing.assert_close(of_both, 3.0 * of_u - of_v, rtol=1e-11, atol=1e-12)


def test_an_expanded_upstream_gradient_is_read_right() -> None:
    """The gradient of a sum has stride 0."""
    hidden, weight, targets = problem(0, 8, 4, 6, dtype=torch.float32)
    expected = gradients(
        linear_cross_entropy, hidden, weight, targets, 15.0, "none", upstream=torch.full((8,), 2.0)
    )
    stride_0 = torch.tensor(2.0).expand(8)
    actual = gradients(linear_cross_entropy, hidden, weight, targets, 15.0, "none", upstream=stride_0)
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x, y)


def test_strides_of_the_inputs_do_not_matter() -> None:
    hidden, weight, targets = problem(0, 8, 4, 6)
    expected = gradients(linear_cross_entropy, hidden, weight, targets, 15.0)
    strided = torch.full((16, 9), math.nan, dtype=torch.float64)[::2, 1:9:2].copy_(hidden)
    transposed = weight.T.contiguous().T
    sparse_targets = torch.stack((targets, targets + 99), 1)[:, 0]
    for arguments in (
        (strided, weight, targets),
        (hidden, transposed, targets),
        (hidden, weight, sparse_targets),
    ):
        torch.testing.assert_close(gradients(linear_cross_entropy, *arguments, 15.0), expected)
    row = hidden[:1].expand(8, 4)
    torch.testing.assert_close(
        gradients(linear_cross_entropy, row, weight, targets, 15.0),
        gradients(linear_cross_entropy, row.contiguous(), weight, targets, 15.0),
    )


@given(seed=st.integers(0, 10**6), softcap=st.sampled_from(SOFTCAPS))
def test_a_common_shift_of_the_capped_logits_costs_nothing(seed: int, softcap: float) -> None:
    """With the identity as head hidden states are the logits, and sum_v dlogits / slope = 0 in every row."""
    generator = torch.Generator().manual_seed(seed)
    logits = 10.0 * torch.randn(7, 9, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 9, (7,), generator=generator)
    _, grad, _ = gradients(
        linear_cross_entropy, logits, torch.eye(9, dtype=torch.float64), targets, softcap, "sum"
    )
    slope = 1.0 - torch.tanh(logits / softcap).square() if softcap else torch.ones_like(logits)
    assert largest((grad / slope).sum(1)) < 1e-11
    assert (grad[targets >= 0].gather(1, targets[targets >= 0][:, None]) < 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_gradients_the_loss_is_the_same(reduction: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(0, 20, 4, 6, dtype=dtype)
    with torch.no_grad():
        quiet = linear_cross_entropy(hidden, weight, targets, 15.0, reduction)
    assert not quiet.requires_grad
    torch.testing.assert_close(
        quiet, gradients(linear_cross_entropy, hidden, weight, targets, 15.0, reduction)[0]
    )


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_the_ops_keep_torchs_contract(softcap: float) -> None:
    """No output aliases or mutates an input; shapes, strides and gradients are the same when traced."""
    hidden, weight, targets = problem(0, 5, 4, 6, dtype=torch.float32)
    for h in (hidden, hidden.T.contiguous().T):
        inputs = (
            h.clone(memory_format=torch.preserve_format).requires_grad_(),
            weight.clone().requires_grad_(),
        )
        torch.library.opcheck(_losses_op, (*inputs, targets, softcap, False))
        torch.library.opcheck(_gradients_op, (*inputs, targets, torch.full((5,), 0.2), softcap, False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_the_compiled_pass_over_the_logits_is_the_same(softcap: float) -> None:
    hidden, weight, targets = problem(0, 20, 4, 30, dtype=torch.float32)
    eager = gradients(linear_cross_entropy, hidden, weight, targets, softcap, "mean", False)
    torch.testing.assert_close(
        gradients(linear_cross_entropy, hidden, weight, targets, softcap, "mean", True), eager
    )
