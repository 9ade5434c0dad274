"""The summary of one run, printed at its end. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from bench.host.console import duration, size
from bench.records.schema import Record


def summary(record: Record, path: Path, board: Path) -> str:
    """Scores, speed, memory, where the time went, warnings, and where the record lies."""
    timing, scores, shape = record.timing, record.scores, record.shape
    spent = sorted(((s, name) for name, s in timing.ledger.items() if s >= 0.05), reverse=True)
    mfu = "n/a" if timing.mfu is None else f"{timing.mfu:.1%}"
    smoothed = scores.final_train_loss_smoothed
    loss = "not finite" if smoothed is None else f"{smoothed:.4f}"
    score = record.status if scores.val_bpb is None else f"val_bpb {scores.val_bpb:.4f}"
    if scores.core_score is not None:
        score += f", CORE {scores.core_score.value:.4f} ± {scores.core_score.standard_error:.4f}"
    lines = [
        "",
        f"{record.identity.recipe} on {record.identity.track}, seed {record.identity.seed_index}: {score}",
        f"  trained   {shape.tokens:,} tokens in {shape.steps:,} steps, "
        f"{duration(timing.official_s)} official ({duration(timing.cold_s)} with compile), loss {loss}",
        f"  speed     {timing.tokens_per_s_median:,.0f} tok/s median, "
        f"{timing.tokens_per_s_median * shape.flops_per_token / 1e9:,.0f} GFLOP/s, MFU {mfu}",
        f"  memory    {size(record.memory.peak_bytes)} peak ({record.memory.method}), "
        f"{size(record.memory.predicted_peak_bytes)} predicted",
        f"  time      {', '.join(f'{name} {s:.1f} s' for s, name in spent)}; {timing.wall_s:.1f} s in all",
        f"  text      {record.data.dataset} {record.data.corpus_sha256[:8]}, {record.data.epochs:.2f} epochs",
    ]
    lines += [f"  warning   {warning}" for warning in record.warnings]
    lines += [f"  record    {path}", f"  board     {board}"]
    return "\n".join(lines)
