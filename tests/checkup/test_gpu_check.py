"""The check of a device, in miniature on the CPU: every file, cut short or not, and contenders that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import bench.checkup.contest
import bench.checkup.gpu_check
from bench.checkup.contest import Contender, Training, Trial, references
from bench.checkup.gpu_check import EXTENTS, STAGES, Extent, ProofsFound, gpu_check
from bench.errors import ProofFailed
from bench.spec.model_table import Model
from bench.spec.recipe import Kernels
from bench.spec.workspace import Workspace
from bench.training.loop import Diverged
from kernels.bench import KernelTable
from kernels.bench_cases import Shapes
from kernels.bench_measure import Rates
from kernels.choices import IMPLEMENTATIONS, REFERENCE, choose, provable
from tests import tiny

pytestmark = pytest.mark.slow

TINY = Extent(
    shapes=Shapes("tiny", rows=2, tokens=32, depth=2, vocab=64, window=8, width=32, head_dim=16),
    trial=Trial(
        model=Model(depth=2, aspect_ratio=16, head_dim=16, sequence_length=32, vocab_size=384),
        batch_tokens=4 * 32,
        contenders=(Contender("chosen", Kernels(), 4), Contender("references", references(), 2)),
        dtype=torch.float32,
        compiled=False,
        most_rounds=3,
        tokenizer_chars=100_000,
    ),
    num_examples=1,
    rounds=1,
)
PAIRS = {f"{op}/{name}" for op in IMPLEMENTATIONS for name in provable(op, "cpu")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for the text and its tokens."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def space(data: Path, tmp_path: Path) -> Workspace:
    """A checkout of one track."""
    return tiny.checkout(tmp_path, data)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rates that need no measuring, a small cache to clear, and torch's settings as they were."""
    rates = Rates(copy_bytes_per_s=1e9, matmul_flops_per_s={"float32": 1e11})
    monkeypatch.setattr("kernels.bench.measure_rates", lambda *_: rates)
    monkeypatch.setattr("kernels.bench_measure._cache_bytes", lambda device: 0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Proofs that cost nothing, by kernel; the fp8 linear's fails."""
    import bench.proving.prove as proving

    asked: list[str] = []

    def prove(op: str, name: str, facts: Any, sources: str, num_examples: int) -> Any:
        asked.append(f"{op}/{name}")
        if op == "fp8_linear":
            raise ProofFailed("fp8_linear: a law is broken")
        return proving.Proof(
            schema=proving.SCHEMA,
            op=op,
            implementation=name,
            sources_sha256=sources,
            device_name=facts.device_name,
            dtypes=("float32",),
            versions={},
            num_examples=num_examples,
            seed=0,
            worst_error_ratios={"law": 0.5},
        )

    monkeypatch.setattr(proving, "prove", prove)
    return asked


def check(space: Workspace, extent: Extent = TINY, budget_s: float = 600.0, **options: Any) -> dict[str, Any]:
    """The files' values by name."""
    kinds = {"proofs": ProofsFound, "kernels": KernelTable, "training": Training}
    paths = list(gpu_check(space, tiny.facts(), space.root / "out", budget_s, extent, **options))
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=kinds[path.stem]) for path in paths}


def test_every_file_holds_its_figures(space: Workspace, proofs: list[str]) -> None:
    found = check(space)
    assert tuple(found) == STAGES
    assert {proof.name for proof in found["proofs"].proofs} | found["proofs"].failures.keys() == PAIRS
    assert found["proofs"].failures == {"fp8_linear/scaled-mm": "ProofFailed: fp8_linear: a law is broken"}
    assert not found["proofs"].not_reached
    assert {row.op for row in found["kernels"].rows} == set(IMPLEMENTATIONS)
    assert not found["kernels"].failures
    chosen, plain = found["training"].contenders
    assert not chosen.failure + plain.failure
    assert set(plain.kernels.values()) == {REFERENCE}
    assert chosen.kernels == {choice.op: choice.implementation for choice in choose("cpu", dtype="float32")}
    assert (chosen.rows_at_once, plain.rows_at_once) == (4, 2)
    assert chosen.tokens_per_s.least > 0
    assert chosen.peak_bytes is not None
    assert chosen.mfu is None  # no peak of a CPU is declared


def test_what_training_would_choose_is_proved_first(space: Workspace, proofs: list[str]) -> None:
    check(space, stages=("proofs",))
    chosen = {f"{choice.op}/{choice.implementation}" for choice in choose("cpu")} & PAIRS
    assert set(proofs[: len(chosen)]) == chosen
    assert set(proofs) == PAIRS


def test_contenders_learn_alike_from_the_same_text(space: Workspace) -> None:
    chosen, plain = check(space, stages=("training",))["training"].contenders
    assert len(chosen.losses) == len(plain.losses) == 2 + TINY.trial.most_rounds
    assert chosen.losses == pytest.approx(plain.losses, rel=1e-3)


def test_without_time_each_file_says_what_was_not_reached(space: Workspace, proofs: list[str]) -> None:
    found = check(space, budget_s=0.0)
    assert not proofs
    assert set(found["proofs"].not_reached) == PAIRS
    assert found["kernels"].not_reached == tuple(IMPLEMENTATIONS)
    assert [each.failure for each in found["training"].contenders] == ["not reached in time"] * 2


def test_a_contender_that_cannot_run_leaves_the_others_their_figures(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench.checkup.contest.build_trainer

    def build_trainer(plan: Any, *arguments: Any) -> Any:
        if all(choice["implementation"] == REFERENCE for choice in plan.kernels):
            raise RuntimeError("out of memory\nand more")
        return real(plan, *arguments)

    monkeypatch.setattr(bench.checkup.contest, "build_trainer", build_trainer)
    chosen, plain = check(space, stages=("training",))["training"].contenders
    assert chosen.tokens_per_s is not None
    assert plain.failure == "RuntimeError: out of memory"


def test_a_contender_that_breaks_on_the_way_keeps_its_figures(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = bench.checkup.contest.train, [0]

    def train(*arguments: Any) -> Any:
        for event in real(*arguments):
            steps[0] += 1
            if steps[0] == 7:  # after two of each to warm up and one round
                raise RuntimeError("illegal memory access")
            yield event

    monkeypatch.setattr(bench.checkup.contest, "train", train)
    contenders = check(space, stages=("training",))["training"].contenders
    broken = [each for each in contenders if each.failure]
    assert [each.failure for each in broken] == ["RuntimeError: illegal memory access"]
    assert all(each.tokens_per_s for each in contenders)


def test_a_file_is_there_before_its_stage_is_over(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    import bench.proving.prove as proving

    monkeypatch.setattr(proving, "prove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(space)
    found = msgspec.json.decode((space.root / "out" / "proofs.json").read_bytes(), type=ProofsFound)
    assert set(found.not_reached) == PAIRS


def test_a_contender_that_diverges_is_said_to_have(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.checkup.contest, "train", lambda *_: iter([Diverged(1)]))
    contenders = check(space, stages=("training",))["training"].contenders
    assert [each.failure for each in contenders] == ["diverged"] * 2


@pytest.mark.parametrize("kind", ["cuda", "cpu", "mps"])
def test_every_device_has_contenders_that_a_plan_takes(space: Workspace, kind: Any) -> None:
    facts = msgspec.structs.replace(tiny.facts(), device_kind=kind)
    trial = EXTENTS[kind].trial
    for contender in trial.contenders:
        plan = bench.checkup.contest._plan(space, facts, trial, contender)
        assert plan.world_size == 1
        assert plan.batch_tokens == plan.device_sequences * plan.accumulation * plan.model.sequence_length
