"""What was compiled is held to the references: every model passes, what computes something else does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from bench.errors import ProofFailed
from bench.proving import compiled, gate
from bench.proving.compiled import error_ratios, muon_ratios
from bench.proving.gate import compiled_proof_for
from bench.proving.proof import COMPILED, SCHEMA, CompiledProof, problems_of_compiled
from bench.spec.plan import Plan
from bench.training.loop import Trainer
from kernels.counting import dispatches
from model.gpt import GPT
from tests import tiny
from tests.training.test_activity import LEVERS, built

WHOLE = dict.fromkeys(COMPILED, 0.1)


def ratios_of(plan: Plan, trainer: Trainer) -> dict[str, float]:
    return error_ratios(trainer, plan.device_sequences, plan.model.sequence_length)


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": {"compute": "bfloat16"}}, *(changes for _, changes in LEVERS.values())],
    ids=["float32", "bfloat16", *LEVERS],
)
def test_every_model_meets_its_references(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With room to spare: the same bound holds on machines that round in another order."""
    ratios = ratios_of(*built(tmp_path, **changes))
    assert set(ratios) == set(WHOLE)
    assert max(ratios.values()) < 0.5


def test_it_leaves_no_trace(tmp_path: Path) -> None:
    plan, trainer = built(tmp_path, optimizer={"muon": {"qk_clip": "logit"}}, model={"qk_norm": False})
    state, buffers = torch.get_rng_state(), dict(trainer.model.named_buffers())
    before = [x.clone() for x in (*trainer.model.parameters(), *buffers.values())]
    ratios_of(plan, trainer)
    after = [*trainer.model.parameters(), *buffers.values()]
    assert all(map(torch.equal, before, after))
    assert all(param.grad is None for param in trainer.model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.optimizer.state == {}


def test_weights_are_put_back_after_an_error(tmp_path: Path) -> None:
    plan, trainer = built(tmp_path)
    before = [param.clone() for param in trainer.model.parameters()]

    def broken(tokens_BT: Tensor) -> Tensor:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ratios_of(plan, trainer._replace(trunk=broken))
    assert all(map(torch.equal, before, trainer.model.parameters()))


def _a_row_from_another(model: GPT, tokens_BT: Tensor) -> Tensor:
    hidden_BTD: Tensor = model(tokens_BT)
    return torch.cat((hidden_BTD[:1], hidden_BTD[:1], hidden_BTD[2:]))


def _without_gradient(model: GPT, tokens_BT: Tensor) -> Tensor:
    """One matrix gets no gradient."""
    model.blocks[0].attn.c_k.weight.requires_grad_(False)
    try:
        hidden_BTD: Tensor = model(tokens_BT)
        return hidden_BTD
    finally:
        model.blocks[0].attn.c_k.weight.requires_grad_(True)


def _without_smear(model: GPT, tokens_BT: Tensor) -> Tensor:
    """A strength of nothing: only gates and scalars are much off."""
    smear, model.smear = model.smear, None
    try:
        hidden_BTD: Tensor = model(tokens_BT)
        return hidden_BTD
    finally:
        model.smear = smear


def _not_a_number(model: GPT, tokens_BT: Tensor) -> Tensor:
    hidden_BTD: Tensor = model(tokens_BT)
    return hidden_BTD * torch.where(torch.arange(len(hidden_BTD)) == 3, torch.nan, 1.0)[:, None, None]


def test_evaluation_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """Its pass over the logits is compiled apart from training's."""
    plan, trainer = built(tmp_path, precision={"compute": "bfloat16"})
    kernels = trainer.model.kernels

    def loss(*tensors: Tensor, reduction: str, **options: Any) -> Tensor:
        found: Tensor = kernels.linear_cross_entropy(*tensors, reduction=reduction, **options)
        return found - 0.1 if reduction == "none" else found

    trainer.model.kernels = kernels._replace(linear_cross_entropy=loss)
    with pytest.raises(ProofFailed, match="the losses of evaluation"):
        ratios_of(plan, trainer)


def test_float16_is_held_to_the_references_whatever_the_scale(tmp_path: Path) -> None:
    """One at which its gradients overflow is the run's own to lower."""
    precision = {"compute": "float16", "initial_loss_scale": 2.0**40}
    plan, trainer = built(tmp_path, precision=precision)
    assert max(ratios_of(plan, trainer).values()) < 0.5
    assert trainer.scaler is not None
    assert trainer.scaler.scale.item() == 2.0**40


def test_long_rows_are_held_to_what_is_no_larger_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, trainer = built(tmp_path, precision={"compute": "bfloat16"})
    short = ratios_of(plan, trainer)
    monkeypatch.setattr(compiled, "LONG", plan.model.sequence_length)
    before = dispatches()
    long = ratios_of(plan, trainer)
    assert dispatches(since=before).keys() >= {"attention/blocked", "linear_cross_entropy/chunked"}
    assert max(*short.values(), *long.values()) < 0.5


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        (_a_row_from_another, "compiled, the gradient of"),
        (_without_gradient, r"the gradient of blocks\.0\.attn\.c_k\.weight"),
        (_without_smear, "the gradient of scalars and gates"),
        (_not_a_number, "nan"),
    ],
)
def test_a_trunk_that_computes_something_else_is_refused(
    tmp_path: Path, mutant: Callable[[GPT, Tensor], Tensor], words: str, compute: str
) -> None:
    plan, trainer = built(tmp_path, precision={"compute": compute})
    wrong = trainer._replace(trunk=lambda tokens_BT: mutant(trainer.model, tokens_BT))
    with pytest.raises(ProofFailed, match=words):
        ratios_of(plan, wrong)


def _no_decay(real: Callable[..., None]) -> Callable[..., None]:
    return lambda *tensors, **numbers: real(*tensors, **{**numbers, "weight_decay": 0.0})


def _plain_momentum(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def direction(grads: Tensor, memory: Tensor, momentum: float, dtype: torch.dtype) -> Tensor:
        real(grads, memory, momentum, dtype)
        return memory.to(dtype, copy=True)

    return direction


def _zeros(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *rest: torch.zeros_like(real(x, *rest))


def _backwards(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *rest: -real(x, *rest)


def _a_step_less(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, steps, *rest: real(x, steps - 1, *rest)


@pytest.mark.parametrize("polar", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("op", "mutant"),
    [
        ("muon_update", _no_decay),
        ("muon_direction", _plain_momentum),
        ("polar_express", _a_step_less),
        ("polar_express", _zeros),
        ("polar_express", _backwards),
    ],
)
def test_a_muon_step_that_computes_something_else_is_refused(
    tmp_path: Path, op: str, mutant: Callable[[Any], Any], polar: torch.dtype
) -> None:
    """At the widths of models, too, where the numbers of an orthogonal matrix are small."""
    plan, trainer = built(tmp_path, model={"aspect_ratio": 128})
    trainer.optimizer.polar_dtype = polar
    assert max(param.numel() for param in trainer.model.blocks.parameters()) == 1024 * 256
    assert max(muon_ratios(trainer, torch.Generator().manual_seed(1)).values()) <= 1.0
    kernels = trainer.optimizer.kernels
    trainer.optimizer.kernels = kernels._replace(**{op: mutant(getattr(kernels, op))})
    with pytest.raises(ProofFailed, match=f"{op} of matrix"):
        ratios_of(plan, trainer)


def test_stacks_are_large_enough_to_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run's are: else the eager forms would be looked at."""
    _, trainer = built(tmp_path)
    monkeypatch.setattr(compiled, "LEAST_ELEMENTS", 4 * 64 * 64)
    sizes, kernels = [], trainer.optimizer.kernels

    def direction(grads: Tensor, *rest: Any) -> Tensor:
        sizes.append((len(grads), grads.numel()))
        found: Tensor = kernels.muon_direction(grads, *rest)
        return found

    trainer.optimizer.kernels = kernels._replace(muon_direction=direction)
    compiled.muon_ratios(trainer, torch.Generator().manual_seed(0))
    groups = [group for group in trainer.optimizer.param_groups if group["kind"] == "muon"]
    for (num, numel), group in zip(sizes, groups, strict=True):
        assert num == len(group["params"]) or (num >= 2 and numel >= 4 * 64 * 64)
    assert any(num < len(group["params"]) for (num, _), group in zip(sizes, groups, strict=True))


def test_a_proof_is_made_once_for_what_is_compiled(tmp_path: Path) -> None:
    """And anew for another model, precision or number of threads, or where the file was cut."""
    space = tiny.checkout(tmp_path / "space", tmp_path / "data")
    plan, facts, folder, made = tiny.request(space).plan, tiny.facts(), tmp_path / "proofs", []

    def proof_for(plan: Plan, cpu_cores: int = 1) -> CompiledProof:
        return compiled_proof_for(
            plan, facts, cpu_cores, tiny_root(), folder, lambda: made.append(1) or WHOLE
        )

    first = proof_for(plan)
    assert first.worst_error_ratios == WHOLE
    assert list(problems_of_compiled(first, facts.device_name, facts.versions)) == []
    recipe = plan.recipe
    rates = msgspec.structs.replace(recipe, schedule=msgspec.structs.replace(recipe.schedule, warmup_steps=5))
    assert proof_for(msgspec.structs.replace(plan, recipe=rates)) == proof_for(plan) == first
    assert len(made) == 1
    half = msgspec.structs.replace(
        recipe, precision=msgspec.structs.replace(recipe.precision, compute="bfloat16")
    )
    others = [
        proof_for(msgspec.structs.replace(plan, device_sequences=2)),
        proof_for(msgspec.structs.replace(plan, recipe=half)),
        proof_for(plan, cpu_cores=2),
    ]
    assert len({first.compiled_sha256, *(other.compiled_sha256 for other in others)}) == 4
    assert len(made) == 4
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert proof_for(plan) == first
    assert len(made) == 5
    (kept,) = (path for path in folder.iterdir() if path.read_bytes().endswith(b"}\n"))
    kept.write_bytes(kept.read_bytes().replace(first.compiled_sha256.encode(), b"0" * 64))
    assert proof_for(plan) == first
    assert len(made) == 6


def tiny_root() -> Path:
    return Path(gate.__file__).parents[2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"device_name": "another"}, "made on another"),
        ({"schema": SCHEMA + 1}, "schema"),
        ({"versions": {"torch": "1.0"}}, "made with"),
        ({"worst_error_ratios": dict.fromkeys(COMPILED[1:], 0.0)}, "says nothing of loss"),
        ({"worst_error_ratios": WHOLE | {"loss": 1.01}}, "loss is 1.01 times"),
        ({"worst_error_ratios": WHOLE | {"loss": float("nan")}}, "loss is nan times"),
    ],
)
def test_a_proof_of_something_else_does_not_vouch(change: dict[str, Any], problem: str) -> None:
    proof = CompiledProof(
        schema=SCHEMA,
        sources_sha256="",
        compiled_sha256="",
        device_name="here",
        versions={"torch": "2.13.0"},
        worst_error_ratios=WHOLE,
    )
    versions = {"torch": "2.13.0", "numpy": "2"}
    assert list(problems_of_compiled(proof, "here", versions)) == []
    (found,) = problems_of_compiled(msgspec.structs.replace(proof, **change), "here", versions)
    assert problem in found
