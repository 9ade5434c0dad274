"""feed.json: the board for programs. Imports no torch.

Schema 1: `{"schema": 1, "tracks": [Track]}`. Times are seconds, sizes bytes, energy joules; what was not
measured is null. An estimate is `{"mean", "half_width", "num_seeds"}`, the half-width that of a 95 %
interval.

Track: `track`, `title`, `track_sha256`, `metric`, `metric_id`, `better`, `rank_by`, `target`, `num_seeds`,
`calibration` (the file of leaderboard/calibrations, or null), `lost` (recipe: runs, none of which
finished), `rows`, best first. Row: `rank_best`, `rank_worst` (null without a rank), and the fields of
bench.board.rows.Row except its sample; its `claim` has `base`, `verdict` and `says`, or is null. Of its
records `runs`: `seed_index`, `seed`, `record_sha256`, `score`, `official_s`, `weights_sha256`,
`events_sha256_tip`, `git_commit`, `git_dirty_sha256`, `created`, `ledger`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bench.board.ranking import Estimate, Ranks
from bench.board.rows import Row
from bench.board.standings import Section
from bench.records.equivalence import Equivalence

SCHEMA = 1
NOT_SHOWN = frozenset({"sample", "records", "hashes"})
DIGITS = 9  # further ones differ by C library, and the feed is compared byte by byte


def feed(sections: list[Section]) -> bytes:
    """Canonical bytes of the feed."""
    value = {"schema": SCHEMA, "tracks": [_track(section) for section in sections]}
    return msgspec.json.format(msgspec.json.encode(_rounded(value)), indent=1) + b"\n"


def _track(section: Section) -> dict[str, Any]:
    track = section.track.track
    return {
        "track": section.track.name,
        "title": track.title,
        "track_sha256": section.track.sha256,
        "metric": track.score.metric,
        "metric_id": track.score.metric_id,
        "better": track.score.better,
        "rank_by": track.score.rank_by,
        "target": track.score.target or None,
        "num_seeds": track.seeds.count,
        "calibration": msgspec.to_builtins(section.calibration),
        "lost": section.lost,
        "rows": [
            _row(row, ranks)
            for table in section.tables
            for row, ranks in zip(table.rows, table.ranks, strict=True)
        ],
    }


def _row(row: Row, ranks: Ranks | None) -> dict[str, Any]:
    ranked = {"rank_best": ranks and ranks.best, "rank_worst": ranks and ranks.worst}
    fields = {name: value for name, value in row._asdict().items() if name not in NOT_SHOWN}
    shown = {
        name: value._asdict() if isinstance(value, Estimate | Equivalence) else value
        for name, value in fields.items()
    }
    return {**ranked, **shown, "runs": [_run(row, place) for place in range(len(row.records))]}


def _run(row: Row, place: int) -> dict[str, Any]:
    record = row.records[place]
    return {
        "seed_index": record.identity.seed_index,
        "seed": record.identity.seed,
        "record_sha256": row.hashes[place],
        "score": record.scores.value,
        "official_s": record.timing.official_s,
        "weights_sha256": record.scores.weights_sha256,
        "events_sha256_tip": record.events_sha256_tip,
        "git_commit": record.identity.git_commit,
        "git_dirty_sha256": record.identity.git_dirty_sha256,
        "created": record.created,
        "ledger": record.timing.ledger,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
