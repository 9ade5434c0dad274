"""MuonAdamW: the same step on one rank and on several, the same bits every time, and after a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn

from bench.proving.bounds import largest
from tests.model import ranks


def alone(
    num_steps: int, world_size: int = 1, tables: torch.dtype = torch.float32
) -> tuple[list[list[nn.Parameter]], ranks.MuonAdamW]:
    """One rank's steps on the gradients that `world_size` ranks have on average."""
    params = ranks.parameters(tables)
    ours = ranks.optimizer(params)
    for step in range(num_steps):
        each = [ranks.gradients(step, rank, tables) for rank in range(world_size)]
        mean = [[sum(g) / world_size for g in zip(*group, strict=True)] for group in zip(*each, strict=True)]
        ranks.give(params, mean)  # type: ignore[arg-type]
        ours.step(ranks.scales(step))
    return params, ours


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank ended with, by world size."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.run_rank, (str(folder),), nprocs=max(ranks.WORLD_SIZES))
    return {size: [torch.load(folder / f"{size}-{r}.pt") for r in range(size)] for size in ranks.WORLD_SIZES}


@pytest.mark.parametrize("world_size", ranks.WORLD_SIZES)
def test_ranks_share_one_step(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    expected, _ = alone(ranks.NUM_STEPS, world_size)
    start = ranks.parameters()
    for i, group in enumerate(expected):
        for j, param in enumerate(group):
            assert largest(param - start[i][j]) > 0.01
            for result in results[world_size]:
                ours = result["params"][i][j]
                assert torch.equal(ours, results[world_size][0]["params"][i][j]), "ranks differ"
                assert largest(ours - param) <= 1e-6 * largest(param)


@pytest.mark.parametrize("world_size", ranks.WORLD_SIZES)
def test_each_momentum_is_held_once_and_is_of_the_mean_gradient(
    results: dict[int, list[dict[str, Any]]], world_size: int
) -> None:
    expected = ranks.momenta(*alone(ranks.NUM_STEPS, world_size))
    for group, momenta in enumerate(expected):
        shares = [result["momenta"][group] for result in results[world_size]]
        torch.testing.assert_close(torch.cat(shares), momenta)
        assert len(momenta) == 1 or max(map(len, shares)) < len(momenta)


@pytest.mark.parametrize("world_size", ranks.WORLD_SIZES)
def test_ranks_share_tables_in_bf16(results: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    """The sum of two is the same in either order, that of three is rounded otherwise."""
    params, ours = alone(ranks.NUM_STEPS, world_size, torch.bfloat16)
    tables = params[len(ranks.MUON_SHAPES)]
    for i, table in enumerate(tables):
        assert {moment.dtype for moment in ours.state[table].values()} == {torch.bfloat16}
        for result in results[world_size]:
            found = result["tables"][i]
            assert torch.equal(found, results[world_size][0]["tables"][i]), "ranks differ"
            torch.testing.assert_close(found, table.data, atol=0.0, rtol=0.0 if world_size == 2 else 2**-6)


def test_a_tall_matrix_moves_further_than_its_transpose() -> None:
    """By sqrt(rows / columns); all else commutes with transposition."""
    generator = torch.Generator().manual_seed(0)
    tall, grad = torch.randn(2, 8, 4, generator=generator)
    wide = nn.Parameter(tall.mT.contiguous())
    moved = nn.Parameter(tall.clone())
    moved.grad, wide.grad = grad.clone(), grad.mT.contiguous()
    muon = {"kind": "muon", "base_lr": 0.1, "base_weight_decay": 0.0, **ranks.MUON_CONSTANTS}
    groups = [{"params": [p], "name": "", **muon} for p in (moved, wide)]
    ranks.MuonAdamW(groups, torch.float32, ranks.KERNELS).step(ranks.scales(0))
    torch.testing.assert_close(
        moved.detach() - tall, (wide.detach().mT - tall) * 2**0.5, rtol=1e-4, atol=1e-5
    )


def test_a_step_has_the_same_bits_every_time() -> None:
    first, second = (alone(3)[0] for _ in range(2))
    for a, b in zip(chain(*first), chain(*second), strict=True):
        assert torch.equal(a, b)


def through_a_file(path: Path) -> Callable[[object], object]:
    def save_and_load(state: object) -> object:
        torch.save(state, path)
        return torch.load(path, weights_only=True)

    return save_and_load


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_run_continues_from_its_state_bit_by_bit(where: str, tmp_path: Path) -> None:
    params, ours = alone(2)
    carry = copy.deepcopy if where == "memory" else through_a_file(tmp_path / "state.pt")
    state = carry(ours.state_dict())
    copied = [[nn.Parameter(p.detach().clone()) for p in group] for group in params]
    resumed = ranks.optimizer(copied)
    resumed.load_state_dict(state)  # type: ignore[arg-type]
    for step in range(2, 5):
        for some, step_it in ((params, ours), (copied, resumed)):
            ranks.give(some, ranks.gradients(step, 0))
            step_it.step(ranks.scales(step))
    for a, b in zip(chain(*params), chain(*copied), strict=True):
        assert torch.equal(a, b)
    without, _ = alone(0)
    assert not torch.equal(without[0][0], copied[0][0])


def test_a_groups_parameters_are_updated_where_they_lie() -> None:
    params, ours = alone(1)
    for group in params[: len(ranks.MUON_SHAPES)]:
        size = group[0].numel()
        places = [param.data_ptr() - group[0].data_ptr() for param in group]
        assert places == [4 * size * i for i in range(len(group))]
    params[0][1].data = params[0][1].data.clone()
    ranks.give(params, ranks.gradients(1, 0))
    with pytest.raises(AssertionError, match="a parameter of group 0 was moved elsewhere"):
        ours.step(ranks.scales(1))


def test_gradients_are_freed_group_by_group() -> None:
    params = ranks.parameters()
    ours, held = ranks.optimizer(params), []
    kernel = ours.kernels.adamw

    def counting(*arguments: Any, **constants: Any) -> None:
        held.append([[param.grad is not None for param in group] for group in params])
        kernel(*arguments, **constants)

    ours.kernels = ours.kernels._replace(adamw=counting)
    ranks.give(params, ranks.gradients(0, 0))
    ours.step(ranks.scales(0))
    num_adamw = len(ranks.ADAMW_SHAPES)
    for i, each in enumerate(held):
        still = num_adamw - 1 - i
        assert [all(group) for group in each] == [False] * (len(params) - still) + [True] * still
    assert len(held) == num_adamw
    assert not any(param.grad is not None for param in chain(*params))


def test_steps_are_counted_once_a_group() -> None:
    _, ours = alone(3)
    counts = [group.get("step") for group in ours.param_groups]
    assert counts == [None] * len(ranks.MUON_SHAPES) + [3] * len(ranks.ADAMW_SHAPES)


def test_the_scales_reach_every_group() -> None:
    start = ranks.parameters()
    for name in ("learning_rate", "weight_decay", "momentum"):
        params, changed = ranks.parameters(), ranks.parameters()
        for some, factor in ((params, 1.0), (changed, 0.5)):
            ours = ranks.optimizer(some)
            for step in range(2):
                ranks.give(some, ranks.gradients(step, 0))
                values = {"learning_rate": 1.0, "weight_decay": 1.0, "momentum": 0.9}
                ours.step(ranks.StepScales(**{**values, name: values[name] * factor}))
        for i, (a, b) in enumerate(zip(params, changed, strict=True)):
            muon = i < len(ranks.MUON_SHAPES)
            differs = not torch.equal(a[0], b[0])
            assert differs == (muon or name == "learning_rate"), (name, i)
            if name == "learning_rate" and not muon:
                assert largest(a[0] - start[i][0]) > largest(b[0] - start[i][0])
