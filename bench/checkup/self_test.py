"""`bench doctor --self-test`: does this device train as the CPU's references do?"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from bench.checkup.unscaled import unscaled_plan
from bench.data.loader import Batch, Cursor
from bench.errors import BenchError, PlanRefused, VerificationFailed
from bench.evaluation.probes import CAUSALITY_TOLERANCE, probe
from bench.host.capability import relative_error
from bench.host.device import Device, configure, open_device
from bench.host.doctor import Finding, fault
from bench.host.facts import MachineFacts
from bench.host.machine import detect
from bench.spec.model_table import Model
from bench.spec.plan import Plan
from bench.spec.recipe import Batch as BatchTable
from bench.spec.recipe import Compile, Horizon, Kernels, Optimizer, Precision, Recipe, Schedule
from bench.spec.recipe import Muon as MuonTable
from bench.spec.workspace import Workspace
from bench.training.build import build_trainer, polar_dtype, steps_only
from bench.training.loop import StepsDone, Trainer, train
from kernels.choices import REFERENCE

SEED, ROWS = 1, 4
MODEL = Model(
    depth=2, aspect_ratio=64, head_dim=64, sequence_length=64, vocab_size=512, window_pattern="SL",
    short_window_multiple=16,
)  # fmt: skip
STEPS = 2


@dataclass(frozen=True)
class Tolerance:
    """How far device and CPU may lie apart: losses, and each matrix's change, relatively."""

    loss: float
    change: float


# The references and the implementations chosen for a CPU lie this far apart there, losses and changes: 0 and
# 5e-3 in float32, 5e-6 and 8e-2 in bfloat16 (torch 2.13, November 2026). Muon makes every direction equally
# large, those of rounding included; a wrong gradient moves a matrix by 1.
TOLERANCES = {"float32": Tolerance(1e-5, 5e-2), "bfloat16": Tolerance(1e-3, 0.3)}


class Trained(msgspec.Struct, frozen=True):
    """What two steps gave."""

    losses: list[float]
    changes: dict[str, Tensor]  # of each matrix, float64 on the CPU


def self_test(space: Workspace, facts: MachineFacts) -> list[Finding]:
    """Probes and two training steps in each dtype on the device, against references on the CPU."""
    device, findings = open_device(facts.device_kind), []
    configure(device, cpu_cores=facts.cpu_cores)
    for name, tolerance in TOLERANCES.items():
        for title, look in (("probes", probed), ("steps", stepped)):
            try:
                finding = look(space, facts, device, name, tolerance)
            except BenchError as error:
                finding = _failed(f"{title} {name}", device, name, error)
            findings.append(finding)
    return findings


def _failed(title: str, device: Device, name: str, error: BenchError) -> Finding:
    """A dtype that the device refuses is a note: a run can compute in the other."""
    if isinstance(error, PlanRefused) and device.backend.dtype_refusal(name):
        return Finding(name=title, state="note", says=error.message, mend=error.hint)
    return fault(title, error)


def probed(space: Workspace, facts: MachineFacts, device: Device, name: str, tolerance: Tolerance) -> Finding:
    """The probes of every evaluation, on an untrained model."""
    trainer, _ = _begin(space, facts, device, name, Kernels())
    found = probe(trainer.model, device.torch_device, SEED)
    says = (
        f"a later token moves earlier logits by {found.causality_max_change:.0e} (at most "
        f"{CAUSALITY_TOLERANCE:.0e}), probabilities sum to 1 within {found.normalisation_max_error:.0e}"
    )
    return Finding(name=f"probes {name}", says=says)


def stepped(
    space: Workspace, facts: MachineFacts, device: Device, name: str, tolerance: Tolerance
) -> Finding:
    """Two steps on the device by its own kernels, and on the CPU by the references.

    Raises:
        VerificationFailed: they lie further apart than rounding explains.
    """
    references = msgspec.convert(dict.fromkeys(Kernels.__struct_fields__, REFERENCE), Kernels)
    polar = polar_dtype(device.compute_dtype(name), device.torch_device)  # the CPU's may be another
    expected = train_steps(space, detect("cpu", environment={}), open_device("cpu"), name, references, polar)
    found = train_steps(space, facts, device, name, Kernels(), polar)
    pairs = zip(found.losses, expected.losses, strict=True)
    loss_error = max(abs(here - there) / there for here, there in pairs)
    errors = {name: relative_error(found.changes[name], change) for name, change in expected.changes.items()}
    worst = max(errors, key=lambda name: errors[name])
    says = (
        f"{STEPS} steps: losses {loss_error:.0e} from the CPU's (at most {tolerance.loss:.0e}), "
        f"changes of matrices {errors[worst]:.0e} (at most {tolerance.change:.0e}; "
        f"{worst})"
    )
    if not (loss_error <= tolerance.loss and errors[worst] <= tolerance.change):
        raise VerificationFailed(
            says, "do not trust runs on this device; report it with `bench doctor --json`"
        )
    return Finding(name=f"steps {name}", says=says)


def train_steps(
    space: Workspace, facts: MachineFacts, device: Device, name: str, kernels: Kernels, polar: torch.dtype
) -> Trained:
    """Train the small model from its seed on random tokens."""
    trainer, plan = _begin(space, facts, device, name, kernels)
    trainer.optimizer.polar_dtype = polar
    before = _matrices(trainer)
    shape = (2, ROWS, MODEL.sequence_length)
    buffer = torch.randint(MODEL.vocab_size, shape, generator=torch.Generator().manual_seed(SEED))
    batch = Batch(buffer, Cursor(step=0, micro=0)).to(device.torch_device)
    losses: list[float] = []
    for event in train(trainer, iter([batch] * STEPS), steps_only(plan), lambda _: float(STEPS)):
        if not isinstance(event, StepsDone):
            raise VerificationFailed(f"training gave {event}", "do not trust runs on this device")
        losses += event.losses
    return Trained(losses, {matrix: after - before[matrix] for matrix, after in _matrices(trainer).items()})


def _begin(
    space: Workspace, facts: MachineFacts, device: Device, name: str, kernels: Kernels
) -> tuple[Trainer, Plan]:
    plan = unscaled_plan(space, facts, recipe_of(name, kernels))
    dtype = device.compute_dtype(name)
    trainer = build_trainer(plan, device.torch_device, dtype, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for param in trainer.model.parameters():  # many start at zero: no token would see another
            param.add_(0.02 * torch.randn(param.shape, generator=generator).to(param.device, param.dtype))
    return trainer, plan


def recipe_of(name: str, kernels: Kernels) -> Recipe:
    """The small model's recipe in a compute dtype, its learning rates full from the first step."""
    return Recipe(
        model=MODEL,
        optimizer=Optimizer(muon=MuonTable(momentum_warmup_steps=0)),
        schedule=Schedule(warmup_steps=0),
        horizon=Horizon(iterations=STEPS),
        batch=BatchTable(tokens=ROWS * MODEL.sequence_length, device_sequences=ROWS),
        precision=msgspec.convert({"compute": name}, Precision),
        kernels=kernels,
        compile=Compile(enabled=False),
    )


def _matrices(trainer: Trainer) -> dict[str, Tensor]:
    """Scalars and vectors are left out: where a norm follows them, their gradient is nothing but rounding."""
    return {
        name: param.detach().double().cpu()
        for name, param in trainer.model.named_parameters()
        if param.ndim == 2
    }
