"""`bench doctor`: can a run start on this machine, and what mends what stands in its way?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.data.manifest import pinned_path, source_names
from bench.errors import BenchError, PlanRefused
from bench.host.doctor import Diagnosis, Finding, fault, has_torch, host_findings, looked_at
from bench.host.facts import Kind, MachineFacts
from bench.host.machine import detect, hardware_class
from bench.host.planning import Planned, plan_here
from bench.proving.gate import sources_sha256, stored
from bench.spec.workspace import Workspace
from kernels.choices import REFERENCE

# What a machine runs first: any machine has its text.
FIRST_RECIPE = "quick.toml"


def diagnose(
    space: Workspace, kind: Kind | None, environment: Mapping[str, str], path: list[str]
) -> Diagnosis:
    """Look at everything a run needs, cheapest first; torch is loaded only where it is installed.

    Raises:
        PlanRefused: this machine has no device of the kind asked for.
    """
    facts = detect(kind, environment=environment)
    folders = (space.data, space.runs, space.records)
    findings = host_findings(space.root, folders, facts, path)
    findings += [data(space), *plan(space, kind, environment)]
    if has_torch():
        findings += torch_findings(facts, environment)
    return Diagnosis(machine_class=hardware_class(facts), facts=facts, findings=findings)


def torch_findings(facts: MachineFacts, environment: Mapping[str, str]) -> list[Finding]:
    """What the device does when asked to, or why torch cannot open it."""
    from bench.host.capability import capability
    from bench.host.device import configure, open_device

    try:
        device = open_device(facts.device_kind)
    except PlanRefused as error:
        return [fault("torch", error)]
    configure(device, cpu_cores=facts.cpu_cores, environment=environment)
    return list(capability(device))


def plan(space: Workspace, kind: Kind | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the first recipe is planned here without refusal, and which of its kernels are proved."""
    try:
        planned = plan_here(space.submissions / FIRST_RECIPE, None, kind, space, environment, False)
    except BenchError as error:
        yield fault("plan", error)
        return
    if planned.plan.refusals:
        refused = PlanRefused(
            planned.plan.refusals[0], hint=f"python -m bench plan submissions/{FIRST_RECIPE}"
        )
        yield fault("plan", refused)
    else:
        yield Finding(name="plan", says=f"{planned.submission.name} runs on track {planned.track.name}")
    yield looked_at("proofs", lambda: proofs(space, planned))


def proofs(space: Workspace, planned: Planned) -> Finding:
    """How many of the plan's fused kernels have a proof for these sources on this device."""
    sources = sources_sha256(space.root)
    fused = [each for each in planned.plan.kernels if each["implementation"] != REFERENCE]
    unproved = [
        each["op"]
        for each in fused
        if stored(space.proofs, each["op"], each["implementation"], sources, planned.facts) is None
    ]
    if not unproved:
        return Finding(name="proofs", says=f"all {len(fused)} kernels are proved on this device")
    says = f"{len(unproved)} of {len(fused)} kernels are not proved here yet: the first run proves its own"
    return Finding(name="proofs", state="note", says=says, mend="make prove")


def data(space: Workspace) -> Finding:
    """Which text lies here: the standard library's always does."""
    have = {name: num_shards(space.data, name) for name in source_names()}
    here = [f"{name} ({count} shards)" for name, count in have.items() if count]
    missing = [name for name, count in have.items() if not count]
    says = f"stdlib{''.join(f', {text}' for text in here)}"
    if not missing:
        return Finding(name="data", says=says)
    first = missing[0]
    pin = "" if pinned_path(first).is_file() else f"python -m bench data pin {first}; "
    return Finding(
        name="data", state="note", says=f"{says}; not here: {', '.join(missing)}",
        mend=f"{pin}python -m bench data fetch {first}",
    )  # fmt: skip


def num_shards(data_folder: Path, name: str) -> int:
    """Whole shards of a data set in the data folder."""
    return sum(1 for _ in (data_folder / "shards" / name).glob("*.parquet"))
