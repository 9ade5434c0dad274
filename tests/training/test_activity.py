"""Levers: each acts and says how much, resumes exactly, and is named inert where it did nothing."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.data.loader import Loader
from bench.data.prepared import Prepared
from bench.host.device import open_device
from bench.spec.plan import Plan
from bench.training import checkpoint
from bench.training.activity import activity
from bench.training.build import build_trainer, loop_config
from bench.training.checkpoint import RunState
from bench.training.loop import StepsDone, Trainer, train, warm_up
from model.schedule import learning_rate_scale
from tests import tiny
from tests.data.shards import prepare_tiny

CPU = torch.device("cpu")
STEPS = 6
# (counter, what turns the lever on). A counter that does not move with training is 1 or another constant.
LEVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Muon+": ("muon_plus", {"optimizer": {"muon": {"renormalise": True}}}),
    "MuonEq by row": ("muon_eq", {"optimizer": {"muon": {"equilibrate": "row"}}}),
    "MuonEq by column": ("muon_eq", {"optimizer": {"muon": {"equilibrate": "column"}}}),
    "clip by weight": ("qk_clip", {"optimizer": {"muon": {"qk_clip": "weight_rms", "qk_clip_tau": 0.5}}}),
    "clip by logit": (
        "qk_clip",
        {"optimizer": {"muon": {"qk_clip": "logit", "qk_clip_tau": 0.01}}, "model": {"qk_norm": False}},
    ),
    "batch warm-up": (
        "batch_warmup",
        {"schedule": {"batch_warmup": {"ratio": 0.5, "start": 0.4}}, "batch": {"device_sequences": 4}},
    ),
    "collection by hand": ("manual_gc", {"compile": {"manual_gc_every_steps": 2}}),
    "z-loss": ("z_loss", {"loss": {"z_loss": 1e-4}}),
    "value residual": ("value_residual", {"model": {"value_residual": True}}),
    "latent attention": ("latent_attention", {"model": {"latent_attention": {"kv_rank": 24, "rope_dim": 8}}}),
    "latent attention of latent queries": (
        "latent_attention",
        {"model": {"latent_attention": {"kv_rank": 24, "q_rank": 16, "rope_dim": 8}}},
    ),
    "bigrams": ("bigram", {"model": {"bigram": {"factor": 5}}}),
    "bigrams of two hashes": ("bigram", {"model": {"bigram": {"factor": 5, "num_hashes": 2}}}),
    "bigrams within documents": ("bigram", {"model": {"bigram": {"factor": 5, "mask_bos": True}}}),
    "gated attention": ("attention_gate", {"model": {"attention_gate_channels": 12}}),
    "embeddings in bfloat16": (
        "bfloat16_embeddings",
        {"precision": {"compute": "bfloat16", "embeddings": "bfloat16"}},
    ),
    "fp8": ("fp8", {"precision": {"fp8": "tensorwise", "fp8_min_dim": 32}}),
    "fp8 by row": ("fp8", {"precision": {"fp8": "rowwise", "fp8_min_dim": 32}}),
    "float16": ("loss_scaling", {"precision": {"compute": "float16"}}),
}
BESIDE = {"loss_scaling": {"steps_not_skipped"}}  # counters that come with another
ALWAYS_ON = {"value_embeddings", "smear", "backout", "normuon", "cautious_decay"}
levers = pytest.mark.parametrize(("counter", "changes"), LEVERS.values(), ids=LEVERS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared corpus of the tiny recipe's vocabulary."""
    return prepare_tiny(tmp_path_factory.mktemp("prepared"), vocab_size=384)


def built(root: Path, **changes: Any) -> tuple[Plan, Trainer]:
    """The tiny recipe's plan and trainer, always from the same seed."""
    plan = tiny.request(tiny.checkout(root, root, **changes)).plan
    dtype = open_device("cpu").compute_dtype(plan.recipe.precision.compute)
    trainer = build_trainer(plan, CPU, dtype, seed=5)
    warm_up(trainer, plan.device_sequences, plan.model.sequence_length, CPU)
    return plan, trainer


def state(step: int) -> RunState:
    """Of a run between two steps."""
    return RunState(
        step=step,
        plan_sha256="plan",
        seed=5,
        events_bytes=0,
        events_tip="",
        seconds={},
        num_resumes=0,
    )


def losses(trainer: Trainer, plan: Plan, prepared: Prepared, first: int, last: int) -> list[float]:
    """Of the steps from `first` to `last` of a run of STEPS."""
    rows, tokens = plan.device_sequences, plan.model.sequence_length
    config = loop_config(plan)._replace(checkpoint_every_steps=0, state_steps=frozenset())
    with Loader(prepared, tokens, rows, plan.batch_ramp, 0, 1, seed=5, device_pin=False) as loader:
        loader.seek(first)
        events = train(trainer, (one.to(CPU) for one in loader), config, lambda _: STEPS, first)
        done = [event for event in islice(events, last - first) if isinstance(event, StepsDone)]
    return [loss for event in done for loss in event.losses]


@levers
def test_a_lever_acts_and_learns(
    tmp_path: Path, prepared: Prepared, counter: str, changes: dict[str, Any]
) -> None:
    plan, trainer = built(tmp_path, **changes)
    seen = losses(trainer, plan, prepared, 0, STEPS)
    found = activity(plan, trainer, prepared)
    assert found.keys() == ALWAYS_ON | {counter} | BESIDE.get(counter, set())
    assert all(math.isfinite(value) for value in found.values())
    assert found[counter] > 0.0
    assert seen[-1] < seen[0]


class NoFloat64(TorchDispatchMode):
    """Stops at the first op that gives float64, which MPS does not have; on a CPU nothing else would tell."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            assert not (isinstance(value, Tensor) and value.dtype == torch.float64), f"{func} gives float64"
        return result


@levers
def test_a_lever_needs_no_float64(
    tmp_path: Path, prepared: Prepared, counter: str, changes: dict[str, Any]
) -> None:
    if "fp8" in str(changes):
        pytest.skip("no Mac multiplies fp8")
    plan, trainer = built(tmp_path, **changes)
    with NoFloat64():
        losses(trainer, plan, prepared, 0, 3)
        activity(plan, trainer, prepared)


@levers
def test_a_lever_resumes_to_the_bit(
    tmp_path: Path, prepared: Prepared, counter: str, changes: dict[str, Any]
) -> None:
    plan, whole = built(tmp_path, **changes)
    expected = losses(whole, plan, prepared, 0, STEPS)
    _, killed = built(tmp_path, **changes)
    seen = losses(killed, plan, prepared, 0, STEPS // 2)
    checkpoint.save(tmp_path / "run", killed, state(STEPS // 2))
    _, after = built(tmp_path, **changes)
    found = checkpoint.newest_whole(tmp_path / "run", "plan", 5)
    assert found is not None
    checkpoint.restore(found[1], after)
    seen += losses(after, plan, prepared, STEPS // 2, STEPS)
    assert seen == expected
    for (name, one), two in zip(whole.model.named_parameters(), after.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert activity(plan, after, prepared) == activity(plan, whole, prepared)


def test_steps_lost_to_rounding_are_counted_among_those_that_float32_takes(
    tmp_path: Path, prepared: Prepared
) -> None:
    """Tables of 1: bfloat16's next numbers are 2^-8 below and 2^-7 above, float32's 2^-24 and 2^-23."""
    plan, trainer = built(tmp_path, precision={"compute": "bfloat16", "embeddings": "bfloat16"})
    losses(trainer, plan, prepared, 0, STEPS)
    tables = [trainer.model.wte, *trainer.model.value_embeds.values()]
    groups = [group for group in trainer.optimizer.param_groups if group["name"] in ("wte", "value_embeds")]
    for group in groups:
        group |= {"base_weight_decay": 0.0, "eps": 0.0, "base_lr": 1.0, "betas": (0.0, 0.0)}
    rate = learning_rate_scale(plan.iterations - 1, plan.iterations, plan.schedule)
    for table in tables:
        state = trainer.optimizer.state[table]
        table.data.fill_(1.0)
        state["exp_avg_sq"].fill_(rate**2)
        # A quarter each: kept, lost, too small for float32, none at all.
        for quarter, step in zip(state["exp_avg"].chunk(4), (2**-5, 2**-12, 2**-30, 0.0), strict=True):
            quarter.fill_(step)
    assert activity(plan, trainer, prepared)["bfloat16_embeddings"] == 0.5


def test_a_clip_that_never_acts_counts_nothing(tmp_path: Path, prepared: Prepared) -> None:
    """Pull 733's at its own tau: the root mean square of singular values starts near 1, the limit is 10."""
    plan, trainer = built(tmp_path, optimizer={"muon": {"qk_clip": "weight_rms"}})
    losses(trainer, plan, prepared, 0, STEPS)
    assert activity(plan, trainer, prepared)["qk_clip"] == 0.0
    _, without = built(tmp_path)
    losses(without, plan, prepared, 0, STEPS)
    for one, two in zip(trainer.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, two)
