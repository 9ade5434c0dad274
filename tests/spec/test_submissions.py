"""The recipes of `submissions/`: what was published of them comes out, and each differs by what it says."""

from __future__ import annotations

from typing import Any

import pytest

from bench.spec.plan import Plan, make_plan
from bench.spec.recipe import DESCRIPTIVE, Recipe
from bench.spec.submission import differences, flatten, load, method, method_sha256
from bench.spec.toml import read_toml
from tests.spec.recipes import CPU, H100X8, SHIPPED, SUBMISSIONS, track, unscaled

# Steps: dev/LEADERBOARD.md of karpathy/nanochat at 92d63d4 (runs 1 to 3), its pulls 733 (run7, v2xx, alpha)
# and 747 (bigram, d16). Those of runs 4 to 6 are not published: they follow from 729.8 M scaling parameters,
# the ratio and 2^20 tokens a step.
STEPS = {
    "run1": 16704,
    "run2": 14889,
    "run3": 7226,
    "run4": 6612,
    "run5": 6055,
    "run6": 5568,
    "run6-fixed": 5568,
    "head": 5568,
    "run7": 6517,
    "run7-tau-off": 6517,
    "v206": 5568,
    "v208": 6000,
    "v209": 6000,
    "v210": 6000,
    "v211": 6000,
    "v215": 5568,
    "bigram-muonplus": 11600,
    "alpha-stack": 7733,
    "d16-upstream": 3584,
    "d16-bigram": 3584,
    "d4-20-upstream": 20,
    "d4-20-bigram": 20,
    "d12-local": 1500,
}
# Of the tiny architectures: width, heads, millions of parameters, and the shares in percent of embedding,
# layers and head.
TINY = {
    "tiny-d4": (512, 8, 37.7, (33.33, 33.33, 33.33)),
    "tiny-d29": (192, 3, 38.0, (33.12, 33.76, 33.12)),
    "tiny-d7": (384, 6, 37.6, (33.51, 32.98, 33.51)),
}
TIED = {"tiny-d4-tied": 25.2, "tiny-d29-tied": 25.4, "tiny-d7-tied": 25.0}

GROWING = {"schedule.batch_warmup.ratio": 0.25, "schedule.batch_warmup.start": 0.125}
STEPS_6000 = {"horizon.param_data_ratio": None, "horizon.iterations": 6000}
WARMDOWN, NO_CLIP = {"schedule.warmdown_ratio": 0.65}, {"optimizer.muon.qk_clip": "off"}
D24, LR = {"model.depth": 24}, {"optimizer.muon.lr": 0.025}
FP8 = {"precision.fp8": "tensorwise"}
TABLES_BF16 = {"precision.embeddings": "bfloat16"}
MUON_EQ_PLUS = {"optimizer.muon.equilibrate": "row", "optimizer.muon.renormalise": True}
RMS = {"kernels.mix_rms_norm": "triton", "kernels.rotary_qk_norm": "triton"}
CHUNKED = {"kernels.linear_cross_entropy": "chunked"}
# Recipe -> what it is compared with, and all that sets it apart. v213 of pull 733 is run7 itself.
CONTROLLED: dict[str, tuple[str, dict[str, Any]]] = {
    "run6": ("run6-fixed", FP8 | TABLES_BF16),
    "head": ("run6-fixed", FP8 | MUON_EQ_PLUS | TABLES_BF16),
    "run7-tau-off": ("run7", NO_CLIP),
    "v206": ("run7", D24 | WARMDOWN | {"horizon.param_data_ratio": 8.0}),
    "v208": ("run7", STEPS_6000),
    "v209": ("run7", STEPS_6000 | WARMDOWN | NO_CLIP),
    "v210": ("run7", STEPS_6000 | NO_CLIP),
    "v211": ("run7", STEPS_6000 | WARMDOWN),
    "v214": ("run7", D24 | LR | {"horizon.param_data_ratio": 7.5}),
    "v215": ("run7", D24 | LR | WARMDOWN | {"horizon.param_data_ratio": 8.0}),
    "v216": ("run7", {"horizon.param_data_ratio": 11.0}),
    "v217": ("run7", {"horizon.param_data_ratio": 11.5}),
    "d12-fused-rmsnorm": ("d12-local", RMS),
    "d12-chunked-ce": ("d12-local", CHUNKED),
    "d12-fused-both": ("d12-local", RMS | CHUNKED),
    **{name: (name.removesuffix("-tied"), {"model.tied_embeddings": True}) for name in TIED},
    "d4": ("quick", {"model.head_dim": 128}),
    "d4-muon-plus": ("d4", {"optimizer.muon.renormalise": True}),
    "d4-muon-eq-row": ("d4", {"optimizer.muon.equilibrate": "row"}),
    "d4-muon-eq-column": ("d4", {"optimizer.muon.equilibrate": "column"}),
    "d4-qk-clip-weight": ("d4", {"optimizer.muon.qk_clip": "weight_rms", "optimizer.muon.qk_clip_tau": 0.9}),
    "d4-qk-clip-logit": (
        "d4-no-qk-norm",
        {"optimizer.muon.qk_clip": "logit", "optimizer.muon.qk_clip_tau": 3.0},
    ),
    "d4-no-normuon": ("d4", {"optimizer.muon.normuon_beta2": 0.0}),
    "d4-z-loss": ("d4", {"loss.z_loss": 1e-4}),
    "d4-bigram": ("d4", {"model.bigram.factor": 5}),
    "d4-bigram-hashes": ("d4", {"model.bigram.factor": 5, "model.bigram.num_hashes": 2}),
    "d4-value-residual": ("d4", {"model.value_residual": True}),
    "d4-latent-attention": ("d4", {"model.latent_attention.kv_rank": 128}),
    "d4-batch-warmup": ("d4", {**GROWING, "batch.device_sequences": 2}),
    "d4-manual-gc": ("d4", {"compile.manual_gc_every_steps": 16}),
    "d4-no-value-embeddings": ("d4", {"model.value_embeddings": "none"}),
    "d4-no-smear": ("d4", {"model.smear": False}),
    "d4-no-backout": ("d4", {"model.backout": False}),
    "d4-nope": ("d4", {"model.positions": "none"}),
    "d4-no-qk-norm": ("d4", {"model.qk_norm": False}),
    "d4-attention-gate": ("d4", {"model.attention_gate_channels": 12}),
    "d4-tied": ("d4", {"model.tied_embeddings": True}),
    "d4-gqa": ("quick", {"model.kv_group": 2}),
    "d4-mqa": ("d4", {"model.kv_group": 2}),
    "d4-fp16": ("d4", {"precision.compute": "float16"}),
    "d4-embeddings-bf16": ("d4", TABLES_BF16),
    "d4-fp8-tensorwise": ("d4", FP8),
    "d4-fp8-rowwise": ("d4", {"precision.fp8": "rowwise"}),
    "d4-cosine": ("d4", {"schedule.warmdown_shape": "cosine"}),
    "d4-sqrt-warmdown": ("d4", {"schedule.warmdown_shape": "sqrt"}),
}
# Recipes that do the same although their names differ, with the reason; none does.
SAME: dict[frozenset[str], str] = {}
# Fields a file repeats from its base, with the reason.
REPEATED = {("run7", "optimizer.muon.qk_clip_tau"): "the published flag, and the default"}


def recipe_of(name: str) -> Recipe:
    return load(SUBMISSIONS / f"{name}.toml").recipe


def own_plan(name: str) -> Plan:
    """The plan on the recipe's own track, whatever machine that needs."""
    made = load(SUBMISSIONS / f"{name}.toml")
    return make_plan(made, track(made.recipe.track), H100X8)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_says_what_it_is(name: str) -> None:
    made = recipe_of(name)
    assert made.title
    assert made.notes.strip()
    assert max(map(len, made.notes.splitlines())) <= 200
    assert track(made.track).name == made.track


@pytest.mark.parametrize("name", SHIPPED)
def test_bases_end_at_nanochats_first_run(name: str) -> None:
    chain = [name]
    while base := read_toml(SUBMISSIONS / f"{chain[-1]}.toml").get("base"):
        assert base not in chain
        chain.append(base)
    assert chain[-1] == "run1"


def test_the_runs_stand_on_each_other_in_order() -> None:
    for number in range(2, 7):
        assert recipe_of(f"run{number}").base == f"run{number - 1}"
    assert recipe_of("run6-fixed").base == "run6"


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "run1"])
def test_a_file_holds_only_what_differs_from_its_base(name: str) -> None:
    data = read_toml(SUBMISSIONS / f"{name}.toml")
    under = flatten(method(recipe_of(data["base"])))
    own = flatten({key: value for key, value in data.items() if key not in DESCRIPTIVE})
    repeated = {(name, field) for field, value in own.items() if under[field] == value}
    assert repeated == {key for key in REPEATED if key[0] == name}


@pytest.mark.parametrize("name", STEPS)
def test_published_steps_come_out(name: str) -> None:
    assert own_plan(name).iterations == STEPS[name]


def test_published_rates_come_out() -> None:
    """Weight decay 0.2 x (12/24)^2 at 348fbb3, and 0.2 x sqrt(2) / 6.63 at 324e69c."""
    assert own_plan("run1").weight_decay == pytest.approx(0.05)
    assert own_plan("run1").matrix_lr == pytest.approx(0.02)
    assert own_plan("run3").weight_decay == pytest.approx(0.2 * (12 / 26) ** 2)
    assert own_plan("run4").weight_decay == pytest.approx(0.0427, abs=5e-5)
    assert own_plan("run4").batch_tokens == own_plan("run6").batch_tokens == 2**20


def test_windows_are_those_of_the_runs() -> None:
    """Half of 2,048 tokens until Run 4, a third and a quarter, rounded up to 128, from then on."""
    windows = {name: own_plan(name).model.window_sizes[0] for name in ("run1", "run4", "run5", "run6")}
    assert windows == {"run1": 1024, "run4": 1024, "run5": 768, "run6": 512}


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_models_have_their_published_sizes(name: str) -> None:
    width, heads, millions, shares = TINY[name]
    made = own_plan(name)
    assert (made.width, made.heads, made.model.head_dim) == (width, heads, 64)
    assert made.parameters_total / 1e6 == pytest.approx(millions, abs=0.06)
    for group, share in zip(("wte", "matrices", "lm_head"), shares, strict=True):
        assert 100 * made.parameters[group] / made.parameters_total == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("name", TIED)
def test_tied_the_layers_are_half(name: str) -> None:
    made = own_plan(name)
    assert made.parameters_total / 1e6 == pytest.approx(TIED[name], abs=0.06)
    assert made.parameters["matrices"] / made.parameters_total == pytest.approx(0.5, abs=0.006)


def test_the_bigram_table_is_as_large_as_published() -> None:
    """5 rows a token of 1,408 at d22: 231 M parameters, which neither the horizon nor the FLOPs see."""
    made, without = own_plan("bigram-muonplus"), own_plan("run7")
    assert made.parameters["bigram"] == 5 * 32768 * 1408
    assert made.scaling_parameters == without.scaling_parameters
    assert made.flops_per_token == without.flops_per_token


@pytest.mark.parametrize("name", CONTROLLED)
def test_each_differs_from_its_control_in_what_it_names_and_in_nothing_else(name: str) -> None:
    control, changes = CONTROLLED[name]
    found = {field: after for field, _, after in differences(recipe_of(control), recipe_of(name))}
    assert found == changes


def test_every_lever_and_every_ablation_has_its_control() -> None:
    assert {name for name in SHIPPED if name.startswith(("d4-", "v2", "d12-"))} - set(CONTROLLED) == {
        "d12-local",
        "d4-20-upstream",
        "d4-20-bigram",
    }


def test_no_two_recipes_are_one() -> None:
    by_method: dict[str, set[str]] = {}
    for name in SHIPPED:
        by_method.setdefault(method_sha256(recipe_of(name)), set()).add(name)
    assert {frozenset(names) for names in by_method.values() if len(names) > 1} == set(SAME)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_runs_at_a_laptops_scale(name: str) -> None:
    """Refused is nothing but kernels that need CUDA, which Lane C's recipes ask for by name."""
    made = make_plan(load(SUBMISSIONS / f"{name}.toml"), track("cpu-quick"), CPU)
    asked = [field for field, value in flatten(method(recipe_of(name))).items() if value == "triton"]
    assert [refusal.split(":")[0] for refusal in made.refusals] == asked


def test_the_tiny_models_keep_their_size_on_their_track() -> None:
    named = track("tiny-38m")
    assert not {"depth", "aspect_ratio", "head_dim", "vocab_size"} & set(named.track.scale["model"])
    for name in (*TINY, *TIED):
        assert recipe_of(name).track == named.name
        shape, bare = own_plan(name), make_plan(load(SUBMISSIONS / f"{name}.toml"), unscaled(named), H100X8)
        assert shape.parameters == bare.parameters
