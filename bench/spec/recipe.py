"""The recipe: everything a contributor chooses, as data. Seeds, paths and code are not recipe fields.

Defaults are nanochat's at its Run 6 (commit a825e63, README of karpathy/nanochat at 92d63d4), with the smear
and backout initialisation that Run 6 left undefined. Each field says what it is, its unit and its range.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from bench.spec.fields import Beta, Count, Fraction, Line, Link, Name, NonNegative, Positive, Table, Text
from bench.spec.model_table import Model


class Muon(Table, frozen=True, kw_only=True):
    """[optimizer.muon]: the matrices. `lr` is for 2^19 tokens a batch, `weight_decay` for d12's horizon.

    Sources: Muon (kellerjordan.github.io/posts/muon), Polar Express (arXiv 2505.16932), MuonEq (arXiv
    2603.28254), Muon+ (arXiv 2602.21545), NorMuon (arXiv 2510.05491), cautious weight decay (arXiv
    2510.12402); all as in nanochat, whose momentum schedule it is.
    """

    lr: Annotated[Positive, Meta(description="learning rate at the reference batch")] = 0.02
    momentum_start: Annotated[Beta, Meta(description="momentum at step 0")] = 0.85
    momentum_peak: Annotated[Beta, Meta(description="momentum after its warm-up")] = 0.97
    momentum_end: Annotated[Beta, Meta(description="momentum at the end of the warmdown")] = 0.90
    momentum_warmup_steps: Annotated[int, Meta(ge=0, le=10**6, description="steps")] = 400
    polar_steps: Annotated[int, Meta(ge=1, le=5, description="Polar Express iterations")] = 5
    polar_norm_scale: Annotated[Positive, Meta(description="safety factor on the Frobenius norm")] = 1.01
    equilibrate: Annotated[
        Literal["none", "row", "column"], Meta(description="MuonEq: what gets one norm before the polar step")
    ] = "none"
    renormalise: Annotated[
        bool, Meta(description="Muon+: the Frobenius norm is restored to sqrt(min(rows, columns)) after it")
    ] = False
    qk_clip: Annotated[
        Literal["off", "weight_rms", "logit"],
        Meta(
            description="MuonClip: W_q and W_k shrunk after a step, by their RMS singular value "
            "(nanochat pull 733) or a head's largest logit (Kimi K2, arXiv 2507.20534)"
        ),
    ] = "off"
    qk_clip_tau: Annotated[Positive, Meta(description="the largest logit allowed")] = 100.0
    normuon_beta2: Annotated[Beta, Meta(description="NorMuon's averaging; 0 is off")] = 0.9
    weight_decay: Annotated[NonNegative, Meta(description="cautious weight decay at the reference")] = 0.28
    weight_decay_rule: Annotated[
        Literal["constant-tau", "depth-squared"],
        Meta(description="x sqrt(B/2^19) D_d12/D, or x (12/depth)^2 (nanochat until its Run 3)"),
    ] = "constant-tau"
    weight_decay_shape: Annotated[
        Literal["constant", "linear", "cosine"], Meta(description="over the run")
    ] = "cosine"


class AdamWGroup(Table, frozen=True, kw_only=True):
    """[optimizer.adamw.GROUP]: one group of parameters, each with its own constants (arXiv 1711.05101)."""

    lr: Annotated[Positive, Meta(description="learning rate at the reference batch and width 768")]
    beta1: Annotated[Beta, Meta(description="averaging of the gradient")] = 0.8
    beta2: Annotated[Beta, Meta(description="averaging of its square")] = 0.95
    eps: Annotated[float, Meta(gt=0.0, le=1e-3, description="added to the root of the average square")] = (
        1e-10
    )
    weight_decay: Annotated[NonNegative, Meta(description="decoupled, times the learning rate")] = 0.0


class AdamW(Table, frozen=True, kw_only=True):
    """[optimizer.adamw]: everything that is not a matrix."""

    lm_head: AdamWGroup = AdamWGroup(lr=0.008, beta2=0.96, weight_decay=0.01)
    wte: AdamWGroup = AdamWGroup(lr=0.3, beta2=0.995, weight_decay=0.001)
    value_embeds: AdamWGroup = AdamWGroup(lr=0.15, beta2=0.995, weight_decay=0.01)
    resid: AdamWGroup = AdamWGroup(lr=0.005, weight_decay=0.05)
    x0: AdamWGroup = AdamWGroup(lr=0.5, beta1=0.96)
    smear: AdamWGroup = AdamWGroup(lr=0.2)
    # As modded-nanogpt trained its scalars in that record.
    value_residual: AdamWGroup = AdamWGroup(lr=0.04, beta1=0.9)
    bigram: AdamWGroup = AdamWGroup(lr=0.3, beta1=0.75, weight_decay=0.01)
    bigram_lambda: AdamWGroup = AdamWGroup(lr=0.004, beta1=0.9)


class Optimizer(Table, frozen=True, kw_only=True):
    """[optimizer]."""

    muon: Muon = Muon()
    adamw: AdamW = AdamW()


class BatchWarmup(Table, frozen=True, kw_only=True):
    """[schedule.batch_warmup]: the batch grows with the tokens seen, in whole micro-batches.

    Learning rates and weight decay of a smaller step go with the root of its batch, as between batches of
    different runs. The run sees the tokens of its horizon, in more steps. Source: the critical batch grows
    with training, and so may the batch, at rates that go with its root (arXiv 2505.23971).
    """

    tokens: Annotated[int, Meta(ge=0, le=10**15, description="tokens over which it grows; 0 is off")] = 0
    ratio: Annotated[Fraction, Meta(description="... or this share of the horizon's")] = 0.0
    start: Annotated[
        float,
        Meta(gt=0.0, le=1.0, description="the first step's share of the full batch"),
    ] = 0.25


class Schedule(Table, frozen=True, kw_only=True):
    """[schedule]: the learning rate over the run: warm-up, constant, warmdown (arXiv 2405.18392)."""

    warmup_steps: Annotated[int, Meta(ge=0, le=10**6, description="linear warm-up, in steps")] = 40
    warmup_ratio: (
        Annotated[Fraction, Meta(description="share of all steps, instead of warmup_steps")] | None
    ) = None
    warmdown_ratio: Annotated[Fraction, Meta(description="share of all steps")] = 0.65
    warmdown_shape: Annotated[Literal["linear", "cosine", "sqrt"], Meta(description="shape of the decay")] = (
        "linear"
    )
    final_lr_fraction: Annotated[Fraction, Meta(description="learning rate at the end")] = 0.05
    batch_warmup: BatchWarmup = BatchWarmup()


class Horizon(Table, frozen=True, kw_only=True):
    """[horizon]: how long to train; exactly one field."""

    param_data_ratio: Annotated[Positive, Meta(description="tokens a scaling parameter")] | None = None
    iterations: Annotated[Count, Meta(description="optimizer steps")] | None = None
    tokens: Annotated[Count, Meta(description="training tokens")] | None = None
    flops: Annotated[float, Meta(gt=0, le=1e30, description="training FLOPs")] | None = None
    seconds: Annotated[Positive, Meta(description="official training time")] | None = None


class Batch(Table, frozen=True, kw_only=True):
    """[batch]: tokens a step, and how many rows a device takes at once (its memory; not the results)."""

    tokens: Annotated[Count, Meta(description="tokens a step")] | Literal["auto"] = "auto"
    device_sequences: Annotated[int, Meta(ge=1, le=65536, description="rows at once")] | Literal["auto"] = (
        "auto"
    )


class Scaling(Table, frozen=True, kw_only=True):
    """[scaling]: factors on what the plan derives for this size; 1 is the nominal transfer."""

    learning_rate: Annotated[Positive, Meta(description="of every group")] = 1.0
    weight_decay: Annotated[NonNegative, Meta(description="of the matrices")] = 1.0
    batch: Annotated[
        Positive, Meta(description="of an auto batch, to whole rows; rates follow the batch")
    ] = 1.0


class Loss(Table, frozen=True, kw_only=True):
    """[loss]."""

    z_loss: Annotated[
        NonNegative, Meta(description="factor on the squared log normaliser (PaLM, arXiv 2204.02311)")
    ] = 0.0


class Precision(Table, frozen=True, kw_only=True):
    """[precision]: dtype of activations and of weights at use; masters and moments are float32.

    float16 is for devices without bfloat16: the loss is scaled, dynamically and without the host waiting, and
    a step whose gradients overflow is skipped (arXiv 1710.03740). It is evaluated in float16, too: the
    weights are used as they were trained, and 11 bits of mantissa round less than bfloat16's 8.

    Those of embeddings need not be: nanochat keeps its tables in bfloat16 since its first commit (gpt.py:
    "optimizer can tolerate it and it saves memory"), half the bytes of weights, gradients and both moments. A
    step that is small beside its weight is then lost, and an average of beta2 = 0.995 stops short of what it
    averages. Bigram tables stay in float32: nanochat's runs have none (pull 747 and its own of c8d93be to
    74554be had them in bfloat16).
    """

    compute: Annotated[
        Literal["float32", "bfloat16", "float16"], Meta(description="of activations and of weights at use")
    ] = "bfloat16"
    embeddings: Annotated[
        Literal["float32", "bfloat16"],
        Meta(
            description="of the token and value embeddings' weights, gradients and moments; bfloat16, as in "
            "nanochat, needs compute = bfloat16"
        ),
    ] = "float32"
    initial_loss_scale: Annotated[
        float,
        Meta(
            ge=1.0, le=2.0**40, description="float16: what the loss is multiplied by at first (GradScaler's)"
        ),
    ] = 65536.0
    loss_scale_growth_steps: Annotated[
        int,
        Meta(
            ge=1,
            le=10**9,
            description="float16: steps in a row without an overflow after which the scale doubles "
            "(GradScaler's); an overflow halves it",
        ),
    ] = 2000
    fp8: Annotated[
        Literal["off", "tensorwise", "rowwise"],
        Meta(description="scaling of fp8 matrix products in training (arXiv 2209.05433, nanochat's fp8.py)"),
    ] = "off"
    fp8_min_dim: Annotated[
        int, Meta(ge=16, le=2**16, description="matrices with a smaller side stay in compute")
    ] = 128
    deterministic: Annotated[
        bool,
        Meta(description="torch's deterministic algorithms: the same bits each time, as on any CPU"),
    ] = False


class Kernels(Table, frozen=True, kw_only=True):
    """[kernels]: which implementation serves each op; "auto" is the plan's choice for the device."""

    embedding: Annotated[
        Literal["auto", "reference", "sorted", "triton"], Meta(description="table look-up")
    ] = "auto"
    mix_rms_norm: Annotated[
        Literal["auto", "reference", "triton"], Meta(description="residual scales and norm")
    ] = "auto"
    rotary_qk_norm: Annotated[
        Literal["auto", "reference", "triton"], Meta(description="rotation and norm of q and k")
    ] = "auto"
    attention: Annotated[
        Literal["auto", "reference", "blocked", "sdpa", "varlen", "triton"],
        Meta(description="causal attention in a window"),
    ] = "auto"
    relu_squared_mlp: Annotated[
        Literal["auto", "reference", "keep-output", "triton"], Meta(description="the MLP")
    ] = "auto"
    linear_cross_entropy: Annotated[
        Literal["auto", "reference", "chunked", "triton"], Meta(description="head and loss")
    ] = "auto"
    muon_direction: Annotated[
        Literal["auto", "reference", "in-place", "triton"], Meta(description="momentum")
    ] = "auto"
    polar_express: Annotated[
        Literal["auto", "reference", "two-forms", "triton"], Meta(description="MuonEq and the polar step")
    ] = "auto"
    muon_update: Annotated[
        Literal["auto", "reference", "in-place", "triton"], Meta(description="Muon+, NorMuon, decay, update")
    ] = "auto"
    adamw: Annotated[Literal["auto", "reference", "fused", "triton"], Meta(description="AdamW's step")] = (
        "auto"
    )
    bigram_residual: Annotated[
        Literal["auto", "reference", "sorted", "triton"], Meta(description="bigram look-up and sum")
    ] = "auto"
    fp8_linear: Annotated[
        Literal["auto", "reference", "scaled-mm", "triton"], Meta(description="products in fp8")
    ] = "auto"


class Compile(Table, frozen=True, kw_only=True):
    """[compile]: torch.compile of the trunk and of the loss's pass over the logits."""

    enabled: Annotated[bool, Meta(description="where the device compiles")] = True
    mode: Annotated[
        Literal["default", "max-autotune-no-cudagraphs"], Meta(description="torch.compile's mode")
    ] = "default"
    manual_gc_every_steps: Annotated[
        int,
        Meta(
            ge=0,
            le=10**9,
            description="Python's garbage is collected after every so many steps and not by itself "
            "(nanochat's base_train: 5000); 0 leaves the collector alone",
        ),
    ] = 0


class Data(Table, frozen=True, kw_only=True):
    """[data]: which text. `shards` counts training shards of a manifest's dataset."""

    dataset: Annotated[
        str,
        Meta(
            pattern=r"^(folder:)?[a-z0-9][a-z0-9._-]{0,63}\Z",
            description="stdlib, a manifest's name, or folder: and a folder of shards under the data folder",
        ),
    ] = "climbmix"
    shards: Annotated[int, Meta(ge=1, le=100_000, description="training shards, the first of them")] = 170
    tokenizer_chars: Annotated[Count, Meta(description="characters the tokenizer trains on")] = 2_000_000_000


class Eval(Table, frozen=True, kw_only=True):
    """[eval]: when to evaluate during the run; the end is always evaluated."""

    every_steps: Annotated[int, Meta(ge=0, le=10**9, description="0: only at the end")] = 0
    validation_bytes: Annotated[
        Count, Meta(description="at most this much text of the validation documents")
    ] = 50_000_000


class Log(Table, frozen=True, kw_only=True):
    """[log]: how often the loss is read back; in between the device is not waited for."""

    every_steps: Annotated[int, Meta(ge=1, le=10**6, description="steps from one read to the next")] = 1


class Checkpoint(Table, frozen=True, kw_only=True):
    """[checkpoint]: how often a resumable state is written during the run; the end's always is."""

    every_steps: Annotated[int, Meta(ge=0, le=10**9, description="steps; 0: only at the end")] = 0


class Recipe(Table, frozen=True, kw_only=True):
    """One submission, resolved: a base, if it had one, is already laid under it."""

    title: Annotated[Line, Meta(description="one line for people")] = ""
    notes: Text = ""
    links: Annotated[tuple[Link, ...], Meta(max_length=20)] = ()
    base: Name | None = None
    systems_only: (
        Annotated[Name, Meta(description="claims to compute what this recipe computes, faster")] | None
    ) = None
    track: Name = "gpt2-8xh100"
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    horizon: Horizon = Horizon(param_data_ratio=12.0)
    batch: Batch = Batch()
    scaling: Scaling = Scaling()
    loss: Loss = Loss()
    precision: Precision = Precision()
    kernels: Kernels = Kernels()
    compile: Compile = Compile()
    data: Data = Data()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()


# Fields that say nothing about the method: two recipes that differ only here are the same recipe.
DESCRIPTIVE = ("title", "notes", "links", "base", "systems_only", "track")
