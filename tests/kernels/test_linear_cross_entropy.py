"""Linear cross-entropy by chunks: what its properties (bench/proving/properties) do not say."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import linear_cross_entropy as chunked
from kernels import linear_cross_entropy_chunks as shared
from kernels import reference
from kernels.counting import dispatches
from kernels.dispatch import implementation
from kernels.linear_cross_entropy_chunks import Ops, Terms

SOFTCAPS = (0.0, 15.0, 60.0)
REDUCTIONS = ("mean", "sum", "none")
NAMES = ("chunked", "triton") if find_spec("triton") else ("chunked",)
# In float32; bf16, whose e^z is read from tables; and so with each token's logits side by side.
COMPILED_CASES = ((torch.float32, 20, 30), (torch.bfloat16, 20, 30), (torch.bfloat16, 64, 96))
Loss = Callable[..., Tensor]


def problem(
    rows: int, width: int, vocab: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, a quarter of them ignored; logits deviate by about 3."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 3.0 / math.sqrt(width)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.25] = -1
    return hidden.to(dtype), weight.to(reference.accumulation_dtype(hidden.to(dtype))), targets


def gradients(function: Loss, hidden: Tensor, weight: Tensor, *arguments: Any, **options: Any) -> Any:
    """(loss, gradient of hidden, gradient of weight)."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = function(hidden, weight, *arguments, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (hidden, weight))


def chunks_of(monkeypatch: pytest.MonkeyPatch, name: str, rows: int, vocab: int) -> None:
    """From here on chunks hold this many rows."""
    if name == "triton":
        monkeypatch.setattr("kernels.triton_ops.linear_cross_entropy.CHUNK_ELEMENTS", rows * vocab)
    else:
        monkeypatch.setattr("kernels.linear_cross_entropy.rows_per_chunk", lambda vocab_size: rows)
        monkeypatch.setattr("kernels.linear_cross_entropy.BLOCK_ELEMENTS", 3 * vocab)


def ops(name: str) -> Ops:
    if name == "chunked":
        return chunked.EAGER_OPS
    from kernels.triton_ops.linear_cross_entropy import OPS

    return OPS


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loss(name: str) -> Loss:
    return implementation("linear_cross_entropy", name)


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [1, 3, 7, 20])
def test_the_chunk_size_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, loss: Loss, softcap: float, reduction: str, rows: int
) -> None:
    inputs = problem(20, 6, 11)
    expected = gradients(reference.linear_cross_entropy, *inputs, softcap, reduction, 0.01)
    chunks_of(monkeypatch, name, rows, 11)
    actual = gradients(loss, *inputs, softcap, reduction, 0.01)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_that_needs_several_chunks() -> None:
    inputs = problem(300, 4, 2**14 + 3, dtype=torch.float64)
    actual = gradients(chunked.linear_cross_entropy, *inputs, 15.0)
    oracle = gradients(reference.linear_cross_entropy, *inputs, 15.0)
    torch.testing.assert_close(actual, oracle, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_are_the_derivatives(
    monkeypatch: pytest.MonkeyPatch, softcap: float, reduction: str, z_loss: float
) -> None:
    hidden, weight, targets = problem(5, 3, 4, dtype=torch.float64)
    chunks_of(monkeypatch, "chunked", 2, 4)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked.linear_cross_entropy(hidden, weight, targets, softcap, reduction, z_loss)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("lse", [-5.0, 5.0])
def test_a_z_loss_that_cancels_the_softmax(loss: Loss, lse: float) -> None:
    """Where 1 + 2 z_loss lse = 0 only the target's logit has a gradient: -1."""
    logits = torch.full((1, 4), lse - math.log(4.0))
    _, grad, _ = gradients(loss, logits, torch.eye(4), torch.tensor([2]), 0.0, "sum", -0.5 / lse)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, -1.0, 0.0]]), atol=1e-6, rtol=0.0)


def test_the_heads_gradient_is_summed_in_float32(
    monkeypatch: pytest.MonkeyPatch, name: str, loss: Loss
) -> None:
    """Over 64 chunks of a bf16 head too, whose sum in bf16 would stand still."""
    hidden, weight, targets = torch.ones(256, 4, dtype=torch.bfloat16), torch.zeros(4, 4), torch.zeros(256)
    chunks_of(monkeypatch, name, 4, 4)
    for head in (weight, weight.bfloat16()):
        _, _, grad = gradients(loss, hidden, head, targets.long(), 15.0, "sum")
        assert grad.dtype == head.dtype
        torch.testing.assert_close(
            grad.float(), torch.tensor([-192.0, 64.0, 64.0, 64.0])[:, None].expand(4, 4)
        )


@pytest.mark.parametrize(
    ("changed", "error", "argument"),
    [
        ({"hidden_ND": torch.zeros(5, 3, dtype=torch.float16)}, TypeError, "hidden_ND"),
        ({"hidden_ND": torch.zeros(1, 5, 3)}, ValueError, "hidden_ND"),
        ({"weight_VD": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "weight_VD"),
        ({"weight_VD": torch.zeros(4, 2)}, ValueError, "weight_VD"),
        ({"weight_VD": torch.zeros(0, 3)}, ValueError, "weight_VD"),
        ({"weight_VD": torch.zeros(4, 3, device="meta")}, ValueError, "weight_VD"),
        ({"targets_N": torch.zeros(5, dtype=torch.int32)}, TypeError, "targets_N"),
        ({"targets_N": torch.zeros(6, dtype=torch.int64)}, ValueError, "targets_N"),
        ({"targets_N": torch.full((5,), 4)}, RuntimeError, "targets_N"),
        ({"targets_N": torch.full((5,), -2)}, RuntimeError, "targets_N"),
        ({"softcap": -1.0}, ValueError, "softcap"),
        ({"softcap": math.nan}, ValueError, "softcap"),
        ({"z_loss": math.inf}, ValueError, "z_loss"),
        ({"reduction": "max"}, ValueError, "reduction"),
    ],
)
def test_what_does_not_fit_is_named(
    loss: Loss, changed: dict[str, Any], error: type[Exception], argument: str
) -> None:
    fits = {"hidden_ND": torch.zeros(5, 3), "weight_VD": torch.zeros(4, 3)}
    arguments = fits | {"targets_N": torch.zeros(5, dtype=torch.int64)} | changed
    with pytest.raises(error, match=argument):
        loss(**arguments)


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_the_ops_keep_torchs_contract(name: str, softcap: float) -> None:
    """No output aliases or mutates an input; shapes, strides and gradients are the same when traced."""
    hidden, weight, targets = problem(5, 4, 6)
    losses, with_gradients = ops(name)
    for h in (hidden, hidden.T.contiguous().T):
        inputs = (
            h.clone(memory_format=torch.preserve_format).requires_grad_(),
            weight.clone().requires_grad_(),
        )
        terms = Terms(softcap, 0.1, -1)
        library.opcheck(losses, (*inputs, targets, *terms))
        library.opcheck(with_gradients, (*inputs, targets, torch.full((5,), 0.2), *terms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time(loss: Loss, dtype: torch.dtype) -> None:
    inputs = problem(33, 8, 70, dtype=dtype)
    first, second = (gradients(loss, *inputs, 15.0, "mean", 1e-4) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)


def test_a_graph_can_be_walked_twice(loss: Loss) -> None:
    hidden, weight, targets = problem(9, 4, 6)
    hidden.requires_grad_()
    result = loss(hidden, weight, targets, 15.0)
    first, second = (torch.autograd.grad(result, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


class Made(TorchDispatchMode):
    """Names of the operators that give a tensor of this shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.names = shape, []  # type: torch.Size, list[str]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape == self.shape:
            self.names.append(str(func))
        return made


def test_the_backward_makes_one_tensor_of_the_heads_size(loss: Loss) -> None:
    """Its gradient: no zeros for those outputs of the op that have none."""
    hidden, weight, targets = problem(9, 4, 6)
    result = loss(hidden.requires_grad_(), weight.requires_grad_(), targets, 15.0)
    with Made(weight.shape) as made:
        result.backward()  # type: ignore[no-untyped-call]
    assert set(made.names) - {"aten.detach.default"} == {"aten.mul.Tensor"}


def test_every_call_is_counted(name: str, loss: Loss) -> None:
    counted = f"linear_cross_entropy/{name}"
    before = dispatches().get(counted, 0)
    gradients(loss, *problem(5, 4, 6), 15.0, "mean")
    assert dispatches()[counted] == before + 1
    gradients(loss, *problem(5, 4, 6), 15.0, "none")  # which computes the logits once more in the backward
    assert dispatches()[counted] == before + 3


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.num_bytes = max(self.num_bytes, tensor.nbytes)
        return result


def watched(body: Callable[..., Any], seen: LargestTensor) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        with seen:
            return body(*arguments)

    return function


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_tensor_is_larger_than_a_chunks_logits(
    monkeypatch: pytest.MonkeyPatch, name: str, loss: Loss, reduction: str
) -> None:
    inputs = problem(64, 4, 50)
    chunks_of(monkeypatch, name, 8, 50)
    seen = LargestTensor()
    for body in ("_losses", "_gradients"):  # inside the ops, which a mode around them does not see
        monkeypatch.setattr(shared, body, watched(getattr(shared, body), seen))
    gradients(loss, *inputs, 15.0, reduction)
    assert seen.num_bytes == 8 * 50 * 4  # the buffer


@pytest.mark.parametrize(("reduction", "kept"), [("mean", 24 + 44), ("none", 24 + 44 + 6)])
def test_the_forward_keeps_gradients_or_inputs_only(loss: Loss, reduction: str, kept: int) -> None:
    hidden, weight, targets = problem(6, 4, 11)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        loss(hidden.requires_grad_(), weight.requires_grad_(), targets, 15.0, reduction)
    assert sum(sizes) == kept


@pytest.mark.skipif("triton" not in NAMES, reason="triton is not installed")
def test_rows_beyond_two_to_the_31_elements() -> None:
    """Two rows of logits 2^31 elements apart, of which a page each is ever touched."""
    from kernels.triton_ops.linear_cross_entropy import _row_pass

    apart = 2**31
    far = torch.empty(apart + 8).as_strided((2, 5), (apart, 1))
    far.copy_(torch.arange(10.0).view(2, 5))
    near, targets, terms = far.clone(), torch.tensor([1, 4]), Terms(15.0, 0.0, -1)
    results = [_row_pass(logits, targets, terms, True) for logits in (far, near)]
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(far, near)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
def test_in_a_compiled_graph(loss: Loss) -> None:
    inputs = problem(20, 4, 30)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    for reduction in REDUCTIONS:
        torch.testing.assert_close(
            gradients(compiled, *inputs, 15.0, reduction, 1e-4),
            gradients(loss, *inputs, 15.0, reduction, 1e-4),
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own, on its first import
@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize(("dtype", "rows", "vocab"), COMPILED_CASES)
def test_the_compiled_pass_over_the_logits_is_the_same(
    softcap: float, dtype: torch.dtype, rows: int, vocab: int
) -> None:
    torch.compiler.reset()  # one function is compiled a limited number of times
    inputs = problem(rows, 4, vocab, dtype=dtype)
    eager = gradients(chunked.linear_cross_entropy, *inputs, softcap, z_loss=1e-4)
    torch.testing.assert_close(
        gradients(chunked.linear_cross_entropy, *inputs, softcap, z_loss=1e-4, compiled=True), eager
    )
