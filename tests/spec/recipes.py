"""Recipes, tracks and machines for tests, and corruption of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from bench.spec.plan import Plan, make_plan
from bench.spec.plan_machine import PlanMachine
from bench.spec.recipe import Recipe
from bench.spec.submission import Submission, decode_recipe, flatten, method, method_sha256
from bench.spec.toml import parse_toml
from bench.spec.track import NamedTrack, load_track

ROOT = Path(__file__).resolve().parents[2]
TRACKS = ROOT / "leaderboard" / "tracks"
SUBMISSIONS = ROOT / "submissions"
SHIPPED = sorted(path.stem for path in SUBMISSIONS.glob("*.toml"))
FIELDS = sorted(flatten(method(Recipe())))

H100X8 = PlanMachine(
    device_kind="cuda",
    device_name="H100 as declared",
    device_count=8,
    machine_class="8xH100",
    device_memory_bytes=80 * 2**30,
    flops_per_s=8 * 0.45 * 989e12,
    rate_source="declared",
)
CPU = PlanMachine(
    device_kind="cpu",
    device_name="Example CPU",
    device_count=1,
    machine_class="cpu",
    device_memory_bytes=16 * 2**30,
    flops_per_s=None,
    rate_source="no rate",
)


def recipe(toml: str) -> Recipe:
    """A recipe from inline TOML."""
    return decode_recipe(parse_toml(toml.encode(), "inline"), "inline")


def submission(toml: str, name: str = "inline") -> Submission:
    """A submission from inline TOML."""
    made = recipe(toml)
    return Submission(name, made, method_sha256(made))


def track(name: str = "gpt2-8xh100", **hardware: Any) -> NamedTrack:
    """A track of the checkout, on other hardware where asked."""
    named = load_track(name, TRACKS)
    changed = msgspec.structs.replace(named.track.hardware, **hardware)
    return NamedTrack(name, msgspec.structs.replace(named.track, hardware=changed), named.sha256)


def unscaled(named: NamedTrack) -> NamedTrack:
    """The track without its [scale], so that a test's recipe alone decides."""
    return NamedTrack(named.name, msgspec.structs.replace(named.track, scale={}), named.sha256)


def plan(toml: str, machine: PlanMachine = H100X8, named: NamedTrack | None = None) -> Plan:
    """The plan of inline TOML, by default on eight H100s and with nothing scaled."""
    return make_plan(submission(toml), named or unscaled(track()), machine)


# What a stranger may put where a value belongs, as TOML.
VALUES = st.sampled_from(
    (
        *(
            "nan",
            "inf",
            "-inf",
            "true",
            '"x"',
            '""',
            "-1",
            "0",
            "1.5",
            "1e400",
            "[]",
            "[1]",
            "{}",
            "{a = 1}",
            "",
        ),
        *("1979-05-27", '"\\u001b[2J"', '"../../etc/passwd"', "9223372036854775808", "'\\'", "=", "\\"),
        *("9" * 400, "9" * 5000, "'''a\nb'''"),
    )
)
TOMLS = st.builds(
    "[model]\ndepth = {}\nhead_dim = {}\nsequence_length = {}\nwindow_pattern = '{}'\n"
    "smear_channels = 8\nve_gate_channels = 4\n"
    "[horizon]\n{}\n[batch]\ntokens = {}\ndevice_sequences = {}\n[precision]\ncompute = '{}'".format,
    st.integers(1, 30),
    st.sampled_from([16, 64, 128]),
    st.sampled_from([64, 100, 2048]),
    st.sampled_from(["L", "SSSL", "SL"]),
    st.sampled_from(
        ["param_data_ratio = 12", "iterations = 7", "tokens = 123456789", "flops = 1e18", "seconds = 60"]
    ),
    st.sampled_from(['"auto"', "524288", "65536", "1000000", "819200"]),
    st.sampled_from(['"auto"', "1", "4", "3"]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
MACHINES = st.sampled_from(
    [(CPU, 1), (H100X8, 8), (msgspec.structs.replace(H100X8, device_memory_bytes=2**31), 8)]
)


LINES = st.builds(
    lambda field, value: f"{field} = {value}",
    st.sampled_from(
        [
            *FIELDS,
            "title",
            "notes",
            "links",
            "base",
            "track",
            "modle.depth",
            "model",
            "horizon",
            '"\\n"',
            "a.b.c",
        ]
    ),
    VALUES,
)


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A shipped recipe with lines put in, bytes changed, or pieces cut out."""
    content = (SUBMISSIONS / f"{draw(st.sampled_from(SHIPPED))}.toml").read_bytes()
    if draw(st.booleans()):
        content = "\n".join(draw(st.lists(LINES, max_size=3))).encode() + b"\n" + content
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 12)))
        content = content[:start] + draw(st.binary(max_size=6)) + content[end:]
    return content
