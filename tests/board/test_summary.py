"""The summary of a run: every figure with its unit, whatever the run came to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.board.summary import summary
from tests.records.sample import changed, sample


def told(bpb: float | None = 2.5, mfu: float | None = None, warnings: list[str] | None = None) -> str:
    record = changed(sample(bpb=bpb, warnings=warnings)[0], "timing.mfu", mfu)
    return summary(record, Path("records/x.json"), Path("LEADERBOARD.md"))


@pytest.mark.parametrize(
    "part",
    [
        "quick on cpu-quick, seed 0: val_bpb 2.5000",
        "262,144 tokens in 64 steps, 16 s official (24 s with compile), loss 5.5962",
        "17,476 tok/s median, 495 GFLOP/s, MFU n/a",
        "900 MiB peak (peak RSS), 950 MiB predicted",
        "train 15.0 s, compile 8.0 s, eval 3.0 s, import 2.0 s, warmup 1.0 s, other 0.5 s, data_wait 0.5 s; ",
        "0.5 s; 30.0 s in all",
        "record    records/x.json",
        "board     LEADERBOARD.md",
    ],
)
def test_a_finished_run(part: str) -> None:
    assert part in told()


def test_a_diverged_run_says_so() -> None:
    assert "quick on cpu-quick, seed 0: diverged" in told(bpb=None)
    assert "loss not finite" in told(bpb=None)


def test_mfu_and_warnings() -> None:
    assert "MFU 41.3%" in told(mfu=0.413)
    assert "  warning   slow\n  warning   slower\n" in told(warnings=["slow", "slower"])
