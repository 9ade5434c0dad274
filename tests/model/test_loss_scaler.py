"""Loss scaling: GradScaler's rule, nothing lost by a scale, a skipped step leaves no trace, no host waits."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.optimizers.loss_scaler import SMALLEST_SCALE, LossScaler, Skip, unchanged_if
from tests.model import ranks


def scaler_of(params: list[list[nn.Parameter]], initial: float = 1024.0, growth_steps: int = 3) -> LossScaler:
    """Over all of these parameters."""
    return LossScaler(chain(*params), initial, growth_steps)


def step_of(gradient: float, scaler: LossScaler) -> Skip:
    """One step whose only gradient is this, scaled."""
    (param,) = scaler.params
    param.grad = torch.full_like(param, gradient) * scaler.scale
    return scaler.unscale_()


@given(
    overflows=st.lists(st.booleans(), max_size=60),
    exponent=st.integers(0, 127),
    growth_steps=st.integers(1, 5),
)
def test_the_scale_is_torchs(overflows: list[bool], exponent: int, growth_steps: int) -> None:
    """`torch.amp.GradScaler`'s own op, as long as the scale is not below the least."""
    scaler = LossScaler([nn.Parameter(torch.ones(2))], 2.0**exponent, growth_steps)
    scale, tracker = torch.tensor(2.0**exponent), torch.tensor(0, dtype=torch.int32)
    for number, overflow in enumerate(overflows):
        skip = step_of(float("nan") if overflow else 0.0, scaler)
        assert bool(skip.now) == overflow
        assert int(skip.before) == sum(overflows[:number])
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(overflow)), 2.0, 0.5, growth_steps)
        if scale < SMALLEST_SCALE:
            break
        assert (float(scaler.scale), int(scaler.counts[0])) == (float(scale), int(tracker))
    assert scaler.is_exhausted() == bool(scale < SMALLEST_SCALE)
    assert scaler.counts[1:].tolist() == [sum(overflows[: number + 1]), number + 1] if overflows else True


def test_an_exhausted_scale_does_not_recover() -> None:
    """Whoever looks at it later, after good steps, still learns of it."""
    scaler = LossScaler([nn.Parameter(torch.ones(2))], 1.0, growth_steps=1)
    assert not scaler.is_exhausted()
    step_of(float("inf"), scaler)
    for _ in range(5):
        step_of(1.0, scaler)
    assert scaler.is_exhausted()
    assert float(scaler.scale) == 0.5


def test_scaled_gradients_of_half_precision_come_out_as_in_float64() -> None:
    """Gradients below float16's least number, 6e-8, are lost without a scale and kept with one."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    factors = torch.tensor([1e-8, 3e-8, 1e-7], dtype=torch.float64)

    def loss_of(weight: Tensor) -> Tensor:
        return (weight.half() * 0.5).float() @ factors.float()

    scaler = LossScaler([weight], 65536.0, 2000)
    for scaled, allowed in ((False, 1.1), (True, 1e-3)):
        weight.grad = None
        loss = loss_of(weight)
        (scaler.scaled(loss) if scaled else loss).backward()  # type: ignore[no-untyped-call]
        if scaled:
            assert not scaler.unscale_().now
        assert weight.grad is not None
        error = ((weight.grad.double() - 0.5 * factors) / (0.5 * factors)).abs().max()
        assert error < allowed
        assert scaled or error > 0.1


def run_steps(steps: list[int], bad: dict[int, float], scaled: bool = True) -> tuple[list[Any], list[Any]]:
    """Parameters and optimizer states after these steps; those in `bad` have one such gradient."""
    params = ranks.parameters()
    ours, scaler = ranks.optimizer(params), scaler_of(params)
    for number, step in enumerate(steps):
        factor = scaler.scale if scaled else 1.0
        grads = [[grad * factor for grad in group] for group in ranks.gradients(step, 0)]
        if step in bad:
            grads[step % len(grads)][0].view(-1)[3] = bad[step]
        ranks.give(params, grads)
        ours.step(ranks.scales(number), scaler.unscale_() if scaled else None)
    states = [ours.state[param][name] for param in chain(*params) for name in sorted(ours.state[param])]
    return list(chain(*params)), states


def test_a_scale_changes_no_bit_where_nothing_overflows() -> None:
    """Powers of two round nothing; the scale doubles on the way."""
    for one, other in zip(run_steps(list(range(5)), {}), run_steps(list(range(5)), {}, False), strict=True):
        assert len(one) > 5
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", range(5))
def test_a_skipped_step_leaves_no_trace(value: float, where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in Muon's group nor in AdamW's, wherever the number stands: as if the step had not been."""
    monkeypatch.setattr(ranks, "scales", lambda step: ranks.StepScales(0.7, 0.9, 0.5))
    bad = 100 + where - 100 % 5  # a step whose bad gradient is in this group
    skipping = run_steps([0, bad, 1, 2], {bad: value})
    without = run_steps([0, 1, 2], {}, scaled=False)
    for one, other in zip(skipping, without, strict=True):
        assert all(map(torch.equal, one, other))


def test_the_very_first_step_can_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments are made before it is known."""
    params, states = run_steps([100], {100: float("inf")})
    assert all(map(torch.equal, params, chain(*ranks.parameters())))
    assert not any(state.any() for state in states)


def test_without_a_skip_nothing_is_kept() -> None:
    tensor = torch.ones(2)
    with unchanged_if(None, [tensor]):
        tensor.add_(1.0)
    assert torch.equal(tensor, torch.full((2,), 2.0))


class NoWaiting(TorchDispatchMode):
    """Raises where a number is read from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_host_never_waits() -> None:
    params = ranks.parameters()
    ours, scaler = ranks.optimizer(params), scaler_of(params, growth_steps=1)
    for step in range(3):
        ranks.give(params, ranks.gradients(step, 0))
        params[0][0].grad.view(-1)[0] *= float("nan") if step == 1 else 1.0  # type: ignore[union-attr]
        with NoWaiting():
            ours.step(ranks.scales(step), scaler.unscale_())
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        scaler.is_exhausted()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank ended with, by world size."""
    folder = tmp_path_factory.mktemp("scaled")
    torch.multiprocessing.spawn(
        ranks.run_rank, (str(folder), ranks.scaled_steps_of_rank), nprocs=max(ranks.WORLD_SIZES)
    )
    return {size: [torch.load(folder / f"{size}-{r}.pt") for r in range(size)] for size in ranks.WORLD_SIZES}


@pytest.mark.parametrize("world_size", ranks.WORLD_SIZES)
def test_ranks_skip_together(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    """A number that is not finite on the last rank alone; nobody takes that step."""
    params = ranks.parameters()
    ours = ranks.optimizer(params)
    for step in (0, 2):
        each = [ranks.gradients(step, rank) for rank in range(world_size)]
        mean = [[sum(g) / world_size for g in zip(*group, strict=True)] for group in zip(*each, strict=True)]
        ranks.give(params, mean)  # type: ignore[arg-type]
        ours.step(ranks.scales(step))
    for result in results[world_size]:
        assert result["counts"] == [1, 1, 3]
        assert result["scale"] == 512.0
        for one, other in zip(chain(*result["params"]), chain(*params), strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-7)


def test_a_scaler_can_be_carried_over(tmp_path: Path) -> None:
    """Scale and counts are all there is: the rest follows."""
    one, other = (LossScaler([nn.Parameter(torch.ones(2))], 64.0, 3) for _ in range(2))
    for value in (1.0, float("inf"), 1.0, 1.0):
        step_of(value, one)
    other.scale.copy_(one.scale)
    other.counts.copy_(one.counts)
    for value in (1.0, 1.0, float("nan")):
        step_of(value, one)
        step_of(value, other)
    assert float(one.scale) == float(other.scale) == 32.0
    assert torch.equal(one.counts, other.counts)
