"""This machine, or the one a track declares, as a plan needs it; and the training rates measured here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.errors import DataError, PlanRefused
from bench.host.facts import Kind, MachineFacts
from bench.host.machine import detect, hardware_class
from bench.host.mps import mps_refusals
from bench.host.peaks import device_of_class, known_device
from bench.spec.parallel import Links
from bench.spec.plan import Plan, make_plan
from bench.spec.plan_machine import PlanMachine
from bench.spec.submission import Submission, load
from bench.spec.track import NamedTrack, load_track, load_tracks, on_track
from bench.spec.workspace import Workspace

# Share of the declared peak a training step is predicted to reach before one was measured: nanochat's
# published runs reach 50 to 59 % on 8xH100 at d24 (README table at 92d63d4); smaller models less.
PREDICTED_MFU = 0.45
DECLARED = " as declared"


class Rates(msgspec.Struct, frozen=True):
    """Measured training rates of this machine in FLOP/s, by device, dtype and depth."""

    flops_per_s: dict[str, float] = {}


def rate_key(device_name: str, dtype: str, depth: int) -> str:
    """The key of a measured rate."""
    return f"{device_name}/{dtype}/d{depth}"


def read_rates(path: Path) -> Rates:
    """The rates file, or none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rates)
    except (OSError, msgspec.DecodeError):  # a cache: what cannot be read is measured again
        return Rates()


def remember_rate(path: Path, key: str, flops_per_s: float) -> None:
    """Keep the newest rate of a run."""
    rates = Rates({**read_rates(path).flops_per_s, key: flops_per_s})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # others may end a run just now
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(rates))
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "free space or mend the permissions of the data folder"
        ) from error


class Planned(NamedTuple):
    """A recipe planned on a machine, and what led to it."""

    submission: Submission
    track: NamedTrack
    plan: Plan
    facts: MachineFacts
    sentence: str  # why the track is not the recipe's own; "" where it is


def plan_here(
    path: Path,
    track_name: str | None,
    kind: Kind | None,
    space: Workspace,
    environment: Mapping[str, str],
    own_by_default: bool,
    world_size: int | None = None,
) -> Planned:
    """The recipe at `path` planned on this machine, on the track named, its own, or the largest met here."""
    submission = load(path, space.submissions)
    facts = detect(kind, environment=environment)
    if track_name is not None or own_by_default:
        name = submission.recipe.track if track_name is None else track_name
        track, sentence = load_track(name, space.tracks), ""
    else:
        own = load_track(submission.recipe.track, space.tracks)
        track, sentence = default_track(own, load_tracks(space.tracks), facts)
    found = plan_submission(submission, track, facts, space, environment, world_size)
    return found._replace(sentence=sentence)


def plan_submission(
    submission: Submission,
    track: NamedTrack,
    facts: MachineFacts,
    space: Workspace,
    environment: Mapping[str, str],
    world_size: int | None = None,
) -> Planned:
    """A submission planned on a track and this machine; `world_size` as `make_plan` takes it."""
    recipe = on_track(submission.recipe, track.track, submission.name)
    rates = read_rates(space.data / "rates.json")
    machine = plan_machine(facts, track, recipe.precision.compute, recipe.model.depth, rates)
    made = make_plan(submission, track, machine, world_size)
    refusals = made.refusals + device_refusals(made, facts, environment)
    return Planned(submission, track, msgspec.structs.replace(made, refusals=refusals), facts, "")


def plan_machine(facts: MachineFacts, track: NamedTrack, dtype: str, depth: int, rates: Rates) -> PlanMachine:
    """The machine to plan for: this one where it is of the track's class, else the class as declared."""
    machine_class = hardware_class(facts)
    if machine_class != track.track.hardware.machine_class:
        declared = _declared_machine(machine_class, track, dtype)
        if declared is not None:
            return declared
    measured = rates.flops_per_s.get(rate_key(facts.device_name, dtype, depth))
    known = known_device(facts.device_name)
    declared_rate = known.flops_per_s.get(dtype) if known else None
    rate, source = None, "no rate: nothing was run here yet and no peak is declared"
    if measured is not None:
        rate, source = measured, "measured here by the last run of this depth"
    elif declared_rate is not None:
        rate = PREDICTED_MFU * declared_rate * facts.device_count
        source = f"{PREDICTED_MFU:.0%} of the declared {dtype} peak"
    return PlanMachine(
        device_kind=facts.device_kind,
        device_name=facts.device_name,
        device_count=facts.device_count,
        machine_class=machine_class,
        device_memory_bytes=facts.device_memory_bytes,
        flops_per_s=rate,
        rate_source=source,
        compile_refusal="the Metal backend of torch.compile is a prototype"
        if facts.device_kind == "mps"
        else "",
    )


def _declared_machine(machine_class: str, track: NamedTrack, dtype: str) -> PlanMachine | None:
    hardware = track.track.hardware
    match = re.fullmatch(r"([0-9]+)x(.+)", hardware.machine_class)
    device = device_of_class(match[2]) if match else None
    if match is None or device is None or device.memory_bytes is None:
        return None
    rate = device.flops_per_s.get(dtype)
    return PlanMachine(
        device_kind=hardware.device_kind,
        device_name=match[2] + DECLARED,
        device_count=int(match[1]),
        machine_class=machine_class,
        device_memory_bytes=device.memory_bytes,
        flops_per_s=PREDICTED_MFU * rate * int(match[1]) if rate else None,
        rate_source=f"{PREDICTED_MFU:.0%} of the declared {dtype} peak",
    )


def device_refusals(plan: Plan, facts: MachineFacts, environment: Mapping[str, str]) -> list[str]:
    """What this device would compute wrongly or not at all, before anything is downloaded."""
    if facts.device_kind != "mps" or plan.machine.device_kind != "mps":
        return []
    return mps_refusals(
        torch_version=facts.versions.get("torch", "0.0"),
        macos_version=facts.os_version,
        environment=environment,
        world_size=plan.world_size,
        micro_batch_tokens=plan.device_sequences * plan.model.sequence_length,
        sequence_length=plan.model.sequence_length,
        vocab=plan.vocab_padded,
        width=plan.width,
        heads=plan.heads,
        head_dim=plan.model.head_dim,
        dtype=plan.recipe.precision.compute,
    )


def default_track(
    own: NamedTrack | None, tracks: list[NamedTrack], facts: MachineFacts
) -> tuple[NamedTrack, str]:
    """The track a recipe runs on here, and a sentence when it is not the recipe's own.

    Args:
        tracks: all, smallest first.
    """
    machine_class = hardware_class(facts)
    if own is not None and own.track.hardware.machine_class == machine_class:
        return own, ""
    fitting = [named for named in tracks if named.track.hardware.machine_class == machine_class]
    if not fitting:
        raise PlanRefused(
            f"no track for a machine of class {machine_class}",
            "`--device cpu` runs on its processor; leaderboard/tracks/ shows how to add a track",
        )
    chosen = fitting[-1]
    needed = own.track.hardware.machine_class if own else "unknown"
    return (
        chosen,
        f"this machine is {machine_class}, track {own.name if own else '?'} needs {needed}: on {chosen.name}",
    )


def links_of(plan: Plan, link: float | None, network: float | None) -> Links:
    """The bandwidths given, in GB/s, or else those declared for the plan's devices."""
    name = plan.machine.device_name
    known = known_device(name) or device_of_class(name.removesuffix(DECLARED))
    link_bytes = known.link_bytes_per_s if known else None
    network_bytes = known.network_bytes_per_s if known else None
    given = [option for option, value in (("--link", link), ("--network", network)) if value is not None]
    return Links(
        link_bytes_per_s=link * 1e9 if link is not None else link_bytes,
        network_bytes_per_s=network * 1e9 if network is not None else network_bytes,
        source=" and ".join(given) or f"declared of {known.class_name if known else name}",
    )
