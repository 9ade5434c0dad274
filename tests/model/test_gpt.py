"""The model: equal to a second statement of its forward pass, causal, and completely initialised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from model.initial import build, init_weights
from tests.kernels.bounds import largest
from tests.model import reference_gpt
from tests.model.configs import CPU, EAGER, FUSED, VARIANTS, batch, scrambled, small_config

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def loss_and_gradients(model: GPT, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """As a training step computes them."""
    hidden = model(tokens).flatten(0, 1)
    loss = model.kernels.linear_cross_entropy(
        hidden, model.head_weight(), targets.flatten(), model.config.softcap
    )
    named = dict(model.named_parameters())
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def expected(model: GPT, tokens: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of the second statement, in float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    loss = reference_gpt.loss(weights, model.config, tokens, targets)
    return loss.detach(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@variants
def test_float32_equals_the_second_statement(config: ModelConfig) -> None:
    model = scrambled(config)
    loss, grads = loss_and_gradients(model, *batch(config))
    exact_loss, exact_grads = expected(model, *batch(config))
    assert abs(loss - exact_loss) < 1e-5
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        assert largest(exact_grads[name]) > 1e-6, f"{name} does not matter, so nothing is tested"
        assert largest(grad - exact_grads[name]) < 1e-4 * largest(exact_grads[name]), name


@variants
def test_bfloat16_is_as_close_to_the_second_statement_as_eager(config: ModelConfig) -> None:
    exact_loss, exact_grads = expected(scrambled(config), *batch(config))
    loss, grads = loss_and_gradients(scrambled(config, torch.bfloat16), *batch(config))
    _, eager_grads = loss_and_gradients(scrambled(config, torch.bfloat16, EAGER), *batch(config))
    assert abs(loss - exact_loss) < 0.02 * exact_loss
    for name, exact in exact_grads.items():
        error, eager_error = ((x[name].double() - exact).norm() / exact.norm() for x in (grads, eager_grads))
        assert grads[name].dtype == torch.float32
        assert error < 2.0 * eager_error + 0.03, name
        assert error < 0.4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_sees_a_later_one(dtype: torch.dtype) -> None:
    model = scrambled(small_config(), dtype)
    tokens, _ = batch(model.config)
    with torch.no_grad():
        before = model(tokens)
        for t in range(1, tokens.shape[1]):
            other = tokens.clone()
            other[:, t:] = (other[:, t:] + 1) % model.config.vocab_size
            after = model(other)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("tokens", [1, 2, 11])
def test_shorter_rows_are_prefixes(tokens: int) -> None:
    model = scrambled(small_config())
    ids, _ = batch(model.config)
    torch.testing.assert_close(model(ids[:, :tokens]), model(ids)[:, :tokens], rtol=1e-5, atol=1e-5)


@variants
def test_logits_are_those_of_the_loss(config: ModelConfig) -> None:
    model = scrambled(config)
    tokens, targets = batch(config)
    logits = model.logits(model(tokens))
    assert logits.shape == (*tokens.shape, config.vocab_size)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(nats, loss_and_gradients(model, tokens, targets)[0])


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_init_writes_every_number(config: ModelConfig, dtype: torch.dtype) -> None:
    """Under `to_empty` what is not written is whatever the memory held; here it held NaN."""
    with torch.device("meta"):
        model = GPT(config, dtype, FUSED)
    model.to_empty(device=CPU)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {"cos", "sin"} <= set(tensors)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(math.nan)
    init_weights(model, torch.Generator().manual_seed(0))
    for name, tensor in tensors.items():
        assert not tensor.isnan().any(), name
    assert not {"cos", "sin"} & set(model.state_dict())
    built = build(config, dtype, FUSED, CPU, seed=0)
    for name, tensor in {**dict(built.named_parameters()), **dict(built.named_buffers())}.items():
        assert torch.equal(tensor, tensors[name]), name
        assert tensor.dtype == (torch.float32 if isinstance(tensor, torch.nn.Parameter) else dtype)


def test_the_seed_is_the_weights() -> None:
    config = small_config()
    one, same, other = (build(config, torch.float32, FUSED, CPU, seed) for seed in (7, 7, 8))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        constant = a.ndim == 1 or "c_proj" in name
        assert torch.equal(a, c) == constant, name


def test_the_same_function_of_position_whatever_the_build() -> None:
    """Built straight on the CPU, the rotary tables are those of the meta build."""
    config = small_config()
    direct = GPT(config, torch.float32, FUSED)
    built = build(config, torch.float32, FUSED, CPU, seed=0)
    assert torch.equal(direct.cos, built.cos)
    assert torch.equal(direct.sin, built.sin)
    torch.testing.assert_close(built.cos.square() + built.sin.square(), torch.ones_like(built.cos))
    assert built.cos[0, 1, 0, 0].item() == pytest.approx(math.cos(1.0))
    assert built.sin[0, 3, 0, -1].item() == pytest.approx(math.sin(3.0 * 100_000.0 ** (-6 / 8)))


def test_init_has_the_stated_distributions() -> None:
    config = small_config(width=256, head_dim=64, vocab_size=2048, vocab_padded=2048)
    model = build(config, torch.float32, FUSED, CPU, seed=3)
    init, std = config.init, 256**-0.5

    def holds(tensor: Tensor, mean: float, deviation: float, bound: float) -> None:
        noise = 6.0 * deviation / math.sqrt(tensor.numel())  # six standard errors
        assert tensor.mean().item() == pytest.approx(mean, abs=noise)
        assert tensor.std().item() == pytest.approx(deviation, rel=6.0 / math.sqrt(tensor.numel()))
        assert bound * 0.9 < largest(tensor) <= bound * (1 + 1e-6)

    def is_normal(tensor: Tensor, deviation: float) -> None:
        holds(tensor, 0.0, deviation, largest(tensor))
        inside = (tensor.abs() < deviation).float().mean().item()
        assert inside == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01)

    is_normal(model.wte, init.wte_std)
    is_normal(model.lm_head, init.lm_head_std)
    for table in model.value_embeds.values():
        holds(table, 0.0, std, math.sqrt(3.0) * std)
    for name, param in model.blocks.named_parameters():
        if name.endswith("c_proj.weight"):
            assert not param.any()
        elif name.endswith("ve_gate.weight"):
            assert 0.0 <= param.min() < param.max() <= init.ve_gate_max
        else:
            scale = std * (init.c_fc_scale if name.endswith("c_fc.weight") else 1.0)
            holds(param, 0.0, scale, math.sqrt(3.0) * scale)
    assert model.smear is not None
    assert 0.0 <= model.smear.gate.weight.min() < model.smear.gate.weight.max() <= init.smear_gate_max
    assert model.smear.scale.tolist() == [init.smear_lambda]
    assert model.resid_lambdas.tolist() == pytest.approx([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    assert model.x0_lambdas.tolist() == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert model.backout_lambda is not None
    assert model.backout_lambda.tolist() == pytest.approx([init.backout_lambda])


@variants
def test_a_fresh_model_knows_nothing(config: ModelConfig) -> None:
    """Both projections start at zero and the head near it: the first loss is log V.

    A head that is also the embedding knows its own token a little, by a logit of lm_head_std * sqrt(width).
    """
    model = build(config, torch.float32, FUSED, CPU, seed=0)
    loss, _ = loss_and_gradients(model, *batch(config))
    assert loss.item() == pytest.approx(
        math.log(config.vocab_size), abs=2e-2 if config.tied_embeddings else 1e-3
    )
